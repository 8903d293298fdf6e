//! Keys and values of past tokens, one slot per depth.
//!
//! Where every token goes through every depth, a slot is allocated once and all sequences of a batch have the same length. In a
//! recursion whose router leaves tokens out, a slot holds the tokens that reached it: each sequence has its own length, and the slot
//! grows. Depths that read what the first recursion made have no slot.

use crate::kernels::{Grid, Layout, Run, Segment, write_rows};
use burn::tensor::{Device, Tensor};
use retie_config::{KvStrategy, ModelConfig};
use std::{ops::Range, sync::Arc};

/// Buffers of every depth, and how much of them is filled.
#[derive(Debug)]
pub struct KvCache {
    slots: Vec<Slot>,
    width: usize,
    device: Device,
    batch: usize,
    capacity: usize,
    len: usize,
    /// The recursions whose slots do not hold every token.
    partial: Vec<Option<Partial>>,
}

/// Keys and values of a depth, `[rows, K·H]` each, sequence after sequence; `None` while they are written, and where there are none.
type Slot = Option<[Tensor<2>; 2]>;

/// The sequences in slots that do not hold every token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Partial {
    /// Tokens of each.
    held: Vec<usize>,
    /// Tokens that each has room for.
    room: Vec<usize>,
}

/// One depth's part of a cache during a forward pass, and where in it the new rows go.
#[derive(Debug)]
pub struct KvSlot<'a> {
    buffers: &'a mut Slot,
    runs: Arc<[Run]>,
}

/// A slot that is full gets room for this part of its tokens more.
const GROWTH: f64 = 1.0 / 16.0;

impl KvCache {
    /// Room for `capacity` tokens of each of `batch` sequences. A recursion whose router leaves tokens out gets room when they come: for
    /// those of the first forward pass exactly, and later for a sixteenth more at a time.
    #[must_use]
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let width = config.key_value_size();
        let slot = |rows: usize| {
            let zeros = || Tensor::zeros([rows, width], device);
            Some([zeros(), zeros()])
        };
        let whole = batch * capacity;
        let recursion = config.recursion.as_ref().and_then(|r| Some((r.router.as_ref()?, r.share_map(config).ok()?)));
        let (slots, partial) = match recursion {
            None => ((0..config.num_hidden_layers).map(|_| slot(whole)).collect(), Vec::new()),
            Some((router, map)) => {
                let partial = |r| router.kv() == KvStrategy::RecursionWise && !router.takes_all(r);
                let of_depth = |recursion: Option<usize>| match recursion {
                    Some(r) if r > 0 && router.kv() == KvStrategy::Shared => None,
                    Some(r) if partial(r) => None,
                    _ => slot(whole),
                };
                let empty = || Partial { held: vec![0; batch], room: vec![0; batch] };
                let slots = map.depths().iter().map(|step| of_depth(step.recursion)).collect();
                (slots, (0..map.num_recursions()).map(|r| partial(r).then(empty)).collect())
            }
        };
        Self { slots, width, device: device.clone(), batch, capacity, len: 0, partial }
    }

    /// Tokens that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of its buffers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let buffers = self.slots.iter().flatten().flatten();
        buffers.map(|buffer| buffer.dims().iter().product::<usize>() * size_of::<f32>()).sum()
    }

    /// Tokens of each sequence that went through recursion `recursion`, if its slots do not hold every token.
    #[must_use]
    pub fn reached(&self, recursion: usize) -> Option<&[usize]> {
        self.partial.get(recursion)?.as_ref().map(|partial| partial.held.as_slice())
    }

    /// The rows of a forward pass over `tokens` more tokens of each sequence.
    pub(crate) fn layout(&self, batch: usize, tokens: usize) -> Layout {
        let kv_len = self.len + tokens;
        assert!(kv_len <= self.capacity, "{kv_len} tokens in a cache for {}", self.capacity);
        Layout::cached(Grid { batch, tokens, kv_len, capacity: self.capacity })
    }

    /// The part of a depth that gets all `num_rows` rows of a forward pass.
    pub(crate) fn slot(&mut self, depth: usize, num_rows: usize) -> KvSlot<'_> {
        let tokens = num_rows / self.batch;
        let run = |row| Run { rows: row * tokens..(row + 1) * tokens, at: row * self.capacity + self.len };
        KvSlot { runs: (0..self.batch).map(run).collect(), buffers: &mut self.slots[depth] }
    }

    /// What a depth holds.
    pub(crate) fn buffers(&self, depth: usize) -> [Tensor<2>; 2] {
        match &self.slots[depth] {
            Some(buffers) => buffers.clone(),
            None => unreachable!("a slot is put back after every use"),
        }
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Makes room in `depths`, those of a recursion, for `tokens` more tokens of each sequence; gives where they go and the layout of an
    /// attention over them, or `None` if the recursion's slots hold every token.
    pub(crate) fn make_room(
        &mut self,
        recursion: usize,
        depths: Range<usize>,
        tokens: &[usize],
    ) -> Option<(Arc<[Run]>, Layout)> {
        let partial = self.partial.get_mut(recursion)?.as_mut()?;
        if let Some(larger) = partial.larger(tokens, self.capacity) {
            for slot in &mut self.slots[depths] {
                let rows = larger.room.iter().sum::<usize>();
                let zeros = || Tensor::zeros([rows, self.width], &self.device);
                *slot = Some(moved(slot.take(), [zeros(), zeros()], partial, &larger));
            }
            *partial = larger;
        }
        let (mut runs, mut segments, mut start) = (Vec::new(), Vec::new(), 0);
        for ((at, held), new) in partial.starts().zip(&partial.held).zip(tokens).filter(|(_, new)| **new > 0) {
            let queries = start..start + new;
            start += new;
            runs.push(Run { rows: queries.clone(), at: at + held });
            segments.push(Segment::last(queries, 0..0, at..at + held + new));
        }
        Some((runs.into(), Layout::ragged(segments)))
    }

    /// The part of a depth whose rows go where [`KvCache::make_room`] said.
    pub(crate) fn slot_for(&mut self, depth: usize, runs: &Arc<[Run]>) -> KvSlot<'_> {
        KvSlot { buffers: &mut self.slots[depth], runs: runs.clone() }
    }

    pub(crate) fn advance_recursion(&mut self, recursion: usize, tokens: &[usize]) {
        if let Some(Some(partial)) = self.partial.get_mut(recursion) {
            partial.held.iter_mut().zip(tokens).for_each(|(held, new)| *held += new);
        }
    }
}

impl Partial {
    /// Rows of the slot at which the sequences begin.
    fn starts(&self) -> impl Iterator<Item = usize> {
        self.room.iter().scan(0, |next, room| {
            let start = *next;
            *next += room;
            Some(start)
        })
    }

    /// The same with room for `tokens` more of each sequence, if there is too little.
    fn larger(&self, tokens: &[usize], capacity: usize) -> Option<Self> {
        let needed = || self.held.iter().zip(tokens).map(|(held, new)| held + new);
        if needed().zip(&self.room).all(|(needed, room)| needed <= *room) {
            return None;
        }
        // All at once: sequences fill up at about the same pace, and growing moves every one.
        let more = |held: usize| held + (held as f64 * GROWTH).ceil() as usize;
        let room = needed().zip(&self.held).map(|(needed, held)| needed.max(more(*held).min(capacity)));
        Some(Self { held: self.held.clone(), room: room.collect() })
    }
}

/// The sequences of a slot, if there are any yet, in other buffers, where they have the room that `to` says.
fn moved(slot: Slot, buffers: [Tensor<2>; 2], from: &Partial, to: &Partial) -> [Tensor<2>; 2] {
    let Some(slot) = slot else { return buffers };
    let runs = from.starts().zip(&from.held).zip(to.starts()).filter(|((_, held), _)| **held > 0);
    let runs: Arc<[Run]> = runs.map(|((start, held), at)| Run { rows: start..start + held, at }).collect();
    let ([keys, values], [old_keys, old_values]) = (buffers, slot);
    [write_rows(keys, old_keys, &runs), write_rows(values, old_values, &runs)]
}

impl KvSlot<'_> {
    /// Writes `k`, `v` `[M, K·H]` where they go; gives the whole buffers.
    pub(crate) fn append(self, [k, v]: [Tensor<2>; 2]) -> [Tensor<2>; 2] {
        // Taken out, so that the buffers have one owner and are written in place.
        let Some([keys, values]) = self.buffers.take() else {
            unreachable!("a slot is put back after every use");
        };
        let buffers = [write_rows(keys, k, &self.runs), write_rows(values, v, &self.runs)];
        *self.buffers = Some(buffers.clone());
        buffers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_slot_grows_for_all_sequences_and_keeps_what_they_hold() {
        let before = Partial { held: vec![2, 0, 32], room: vec![2, 1, 32] };
        assert_eq!(before.larger(&[0, 1, 0], 40), None);
        let after = before.larger(&[1, 0, 1], 33).unwrap();
        assert_eq!(after.room, [3, 0, 33]);
        let device = Device::flex();
        let rows = |from: usize, count: usize| {
            let rows: Vec<f32> = (from..from + count).map(|i| i as f32).collect();
            Tensor::<1>::from_floats(rows.as_slice(), &device).reshape([count, 1])
        };
        let zeros = || Tensor::zeros([36, 1], &device);
        let [_, values] = moved(Some([rows(0, 35), rows(100, 35)]), [zeros(), zeros()], &before, &after);
        let found: Vec<f32> = values.to_data().try_into_vec().unwrap();
        assert_eq!(found[..5], [100.0, 101.0, 0.0, 103.0, 104.0]);
        assert_eq!((found.len(), found[34]), (36, 134.0));
    }
}

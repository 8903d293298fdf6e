//! Hidden states of the words of sentences, before the first recursion and after each.

use crate::{
    model::TextModel,
    progress::{Progress, Unit},
};
use anyhow::{Context, ensure};
use burn::tensor::{Int, Tensor};
use retie_lab::trees::{Corpus, ProbedStates, Sentence};
use retie_model::{SelectionRule, kernels::Layout};
use std::collections::BTreeMap;

/// Sentences of a forward pass.
const BATCH_SIZE: usize = 32;

/// A sentence as the model reads it.
struct Encoded {
    ids: Vec<u32>,
    /// Token that ends each word.
    ends: Vec<usize>,
}

/// Numbers of depths after which the states are probed: before the first recursion and after each.
///
/// # Errors
/// Recursions that do not run one after the other.
pub fn probed_depths(model: &TextModel) -> anyhow::Result<Vec<usize>> {
    let map = model.model.share_map();
    let ends = map.recursion_ends().with_context(|| {
        format!(
            "the recursions of sharing `{}` do not run one after the other, so that there are no states after each\n\
             hint: probe a model with the sharing `cycle` or `middle_cycle`",
            map.sharing()
        )
    })?;
    Ok([map.loop_start()].into_iter().chain(ends).collect())
}

/// States of the words of a corpus at each of `depths`: those of the last token of each word, where
/// words have a space between them and a token that stands for an empty context is before them.
///
/// # Errors
/// A word that does not end where a token ends, a sentence that is longer than the context.
pub fn states(model: &TextModel, corpus: &Corpus, depths: &[usize]) -> anyhow::Result<Vec<ProbedStates>> {
    let width = model.model.config().hidden_size;
    let mut bar = Progress::new("states", Unit::Count("sentences"), 0);
    let total = (corpus.train.len() + corpus.held_out.len()) as u64;
    let mut found = vec![ProbedStates { width, ..ProbedStates::default() }; depths.len()];
    for (is_held_out, sentences) in [(false, &corpus.train), (true, &corpus.held_out)] {
        let before = if is_held_out { corpus.train.len() } else { 0 };
        let progress = |done: usize| bar.set((before + done) as u64, total, "");
        let of_depths = of_sentences(model, sentences, depths, progress)?;
        for (states, of_depth) in found.iter_mut().zip(of_depths) {
            *(if is_held_out { &mut states.held_out } else { &mut states.train }) = of_depth;
        }
    }
    Ok(found)
}

/// States of each sentence at each depth.
fn of_sentences(
    model: &TextModel,
    sentences: &[Sentence],
    depths: &[usize],
    mut progress: impl FnMut(usize),
) -> anyhow::Result<Vec<Vec<Vec<f32>>>> {
    let encoded = sentences.iter().map(|sentence| encode(model, sentence)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    encoded.iter().enumerate().for_each(|(index, found)| by_length.entry(found.ids.len()).or_default().push(index));
    let mut states = vec![vec![Vec::new(); sentences.len()]; depths.len()];
    let mut done = 0;
    for (len, indices) in by_length {
        for batch in indices.chunks(BATCH_SIZE) {
            let ids: Vec<i32> = batch.iter().flat_map(|index| &encoded[*index].ids).map(|id| *id as i32).collect();
            let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &model.device);
            let mut forward = model.model.begin(ids, Layout::batch(batch.len(), len), SelectionRule::Causal);
            for (states, depth) in states.iter_mut().zip(depths) {
                forward.advance_to(*depth);
                let values: Vec<f32> = forward.hidden().clone().into_data().iter::<f32>().collect();
                let width = values.len() / (batch.len() * len);
                for (row, index) in batch.iter().enumerate() {
                    let token = |end: &usize| &values[(row * len + end) * width..(row * len + end + 1) * width];
                    states[*index] = encoded[*index].ends.iter().flat_map(token).copied().collect();
                }
            }
            done += batch.len();
            progress(done);
        }
    }
    Ok(states)
}

fn encode(model: &TextModel, sentence: &Sentence) -> anyhow::Result<Encoded> {
    let text = sentence.tokens.join(" ");
    let (ids, places) = model.tokenizer.encode_with_places(&text)?;
    let (mut ends, mut end) = (Vec::with_capacity(sentence.len()), 0);
    for (index, word) in sentence.tokens.iter().enumerate() {
        end += word.len() + usize::from(index > 0);
        let token = places.iter().rposition(|place| place.end == end && place.start < end).with_context(|| {
            format!(
                "word {index}, `{word}`, of `{text}` does not end where a token of the model ends\n\
                 hint: spans count the words of a sentence, with spaces between them; these may be those of another tokenisation"
            )
        })?;
        // Behind the token of the empty context.
        ends.push(token + 1);
    }
    let ids: Vec<u32> = [model.prefix_token()?].into_iter().chain(ids).collect();
    let context = model.model.config().max_position_embeddings;
    ensure!(
        ids.len() <= context,
        "`{text}` has {} tokens, expected {context} at most, the model's context\nhint: give `--tokens` a lower end",
        ids.len()
    );
    Ok(Encoded { ids, ends })
}

//! `state.json` of a checkpoint: what is accepted is gone on from.

use super::Target;
use retie_data::{Mixture, Sampler, TokenDataset};
use retie_trainer::RunState;
use std::{cell::OnceCell, sync::Arc};

pub const STATE: Target = Target { name: "state", files: &[], run: |input, _| state(input) };

fn state(input: &[u8]) {
    thread_local! {
        static DATA: OnceCell<Option<Arc<Mixture>>> = const { OnceCell::new() };
    }
    let Ok(state) = serde_json::from_slice::<RunState>(input) else { return };
    DATA.with(|data| {
        let make = || {
            let tokens: Vec<u32> = (0..200).map(|token| token % 50).collect();
            let text = TokenDataset::from_tokens(&tokens, 4).ok()?;
            Mixture::new(vec![(text, 1.0)]).ok().map(Arc::new)
        };
        let Some(data) = data.get_or_init(make) else { panic!("the text") };
        _ = data.check_fingerprint(&state.data);
        let Ok(mut sampler) = Sampler::new(Arc::clone(data), 7, &state.cursors) else { return };
        for _ in 0..3 {
            _ = sampler.next_batch(2);
        }
    });
}

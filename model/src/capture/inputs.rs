//! Inputs of a captured pass: buffers of the device that stay where they are.

use crate::{
    CausalLm,
    kernels::FixedMemory,
    rope::{RopeAngles, RopeFrequencies},
};
use burn::tensor::{Device, Int, Tensor, TensorData};

/// What the host writes before each replay. `M` rows, `P` positions that repeat over them.
#[derive(Debug)]
pub(super) struct Inputs {
    memory: &'static dyn FixedMemory,
    /// Token ids, `[M]`.
    pub ids: Tensor<1, Int>,
    /// Of each row one key of its sequence, the last or the first that it attends to, `[M]`.
    pub keys: Tensor<1, Int>,
    /// One per rotary embedding of the model, at `P` positions.
    pub angles: Vec<RopeAngles>,
    ropes: Vec<RopeFrequencies>,
    /// The positions of `angles`.
    positions: Vec<usize>,
}

impl Inputs {
    /// Buffers for `rows` rows and the angles of `positions`.
    pub fn new(model: &CausalLm, memory: &'static dyn FixedMemory, rows: usize, positions: Vec<usize>) -> Self {
        let (device, ropes) = (model.device().inner(), model.spec.ropes.clone());
        let integers = || zeros(rows, &device);
        let angles = ropes.iter().map(|rope| rope.angles(&positions, &device)).collect();
        Self { memory, ids: integers(), keys: integers(), angles, ropes, positions }
    }

    /// Writes the ids of the next pass.
    pub fn set_ids(&self, ids: &[u32]) {
        self.memory.overwrite_integers(&self.ids, ids.iter().map(|id| *id as i32).collect());
    }

    /// Writes the keys of the next pass.
    pub fn set_keys(&self, keys: &[usize]) {
        self.memory.overwrite_integers(&self.keys, keys.iter().map(|key| *key as i32).collect());
    }

    /// Writes the angles of the next pass, if they are others than before.
    pub fn set_positions(&mut self, positions: Vec<usize>) {
        if positions == self.positions {
            return;
        }
        for (rope, RopeAngles { cos, sin }) in self.ropes.iter().zip(&self.angles) {
            let [cosines, sines] = rope.values(&positions);
            self.memory.overwrite(cos, cosines);
            self.memory.overwrite(sin, sines);
        }
        self.positions = positions;
    }
}

/// A buffer of its own: one that is filled by a kernel could share its memory.
fn zeros(len: usize, device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(vec![0i32; len], [len]), device)
}

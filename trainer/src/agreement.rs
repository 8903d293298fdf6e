//! What has to be the same on all ranks.

use crate::{TrainError, collective::Collective};
use retie_config::UptrainConfig;
use retie_model::CausalLm;

/// Every rank has the same number of micro-batches.
///
/// # Errors
/// [`TrainError::UnevenRanks`].
pub fn check_ranks(config: &UptrainConfig, world: usize) -> Result<(), TrainError> {
    let accumulation = config.train.gradient_accumulation;
    if accumulation.is_multiple_of(world) { Ok(()) } else { Err(TrainError::UnevenRanks { accumulation, world }) }
}

/// Every rank has the same weights, in bits, after `step`.
///
/// # Errors
/// [`TrainError::RanksDiffer`], on all of them.
pub fn check_weights(model: &CausalLm, step: u64, ranks: &dyn Collective) -> Result<(), TrainError> {
    if ranks.world() == 1 {
        return Ok(());
    }
    let mut hash = 0u32;
    let mut mix = |bits: u32| hash = hash.rotate_left(5).wrapping_mul(0x9e37_79b1) ^ bits;
    model.for_each_parameter(|_, parameter| parameter.values().iter().for_each(|x| mix(x.to_bits())));
    // Whole numbers, of which f64 holds the sum exactly.
    let differs = ranks.total(f64::from(hash)) != f64::from(hash) * ranks.world() as f64;
    if ranks.any(differs) { Err(TrainError::RanksDiffer { step }) } else { Ok(()) }
}

//! Token ids of a forward pass: on its device, and on the host, where routers that draw read them.

use crate::kernels::Late;
use burn::tensor::{Device, Int, Tensor};
use std::sync::{Arc, OnceLock};

/// Token ids `[M]`. Where only the device has them, the host reads them when something asks.
#[derive(Clone, Debug)]
pub struct TokenIds {
    tensor: Tensor<1, Int>,
    host: Arc<OnceLock<Vec<u32>>>,
}

impl TokenIds {
    /// Ids of the host, also on `device`.
    #[must_use]
    pub fn upload(ids: impl IntoIterator<Item = u32>, device: &Device) -> Self {
        let ids: Vec<u32> = ids.into_iter().collect();
        let signed: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        Self { tensor: Tensor::from_ints(signed.as_slice(), device), host: Arc::new(OnceLock::from(ids)) }
    }

    /// On the device.
    #[must_use]
    pub fn tensor(&self) -> &Tensor<1, Int> {
        &self.tensor
    }

    /// On the host.
    pub(crate) fn host(&self) -> &[u32] {
        let read = || Late::integers(self.tensor.clone()).values().iter().map(|id| *id as u32).collect();
        self.host.get_or_init(read)
    }
}

impl From<Tensor<1, Int>> for TokenIds {
    fn from(tensor: Tensor<1, Int>) -> Self {
        Self { tensor, host: Arc::default() }
    }
}

//! The rank that writes the files of a run.

use super::{resume::CONFIG_FILE, spikes::Spikes};
use crate::{
    TrainError,
    log::{Loggers, replace},
};
use retie_checkpoint::Provenance;
use retie_config::{UptrainConfig, document::to_yaml};

/// Logs of a run, and the watch over its losses, which goes by the log.
pub struct Lead {
    pub loggers: Loggers,
    pub spikes: Spikes,
}

impl Lead {
    /// Opens the files of a run of which `step` steps are done; `changed`: its configuration is
    /// another one from there on.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is none of this program.
    pub fn open(config: &UptrainConfig, provenance: &Provenance, step: u64, changed: bool) -> Result<Self, TrainError> {
        write_run_files(config, provenance, changed.then_some(step))?;
        let (loggers, rows) = Loggers::open(&config.run, step)?;
        Ok(Self { loggers, spikes: Spikes::new(config.train.loss_spike, &rows) })
    }
}

fn write_run_files(config: &UptrainConfig, provenance: &Provenance, changed_at: Option<u64>) -> Result<(), TrainError> {
    let dir = &config.run.dir;
    fs_err::create_dir_all(dir)?;
    let path = dir.join(CONFIG_FILE);
    if let (true, Some(step)) = (path.exists(), changed_at) {
        replace(&dir.join(format!("config.until-step-{step}.yaml")), &fs_err::read(&path)?)?;
    }
    if changed_at.is_some() || !path.exists() {
        replace(&path, to_yaml(config)?.as_bytes())?;
    }
    Ok(provenance.save(dir)?)
}

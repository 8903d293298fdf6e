//! Uploads of a folder into a repository of the hub: one commit with all of its files.
//!
//! The steps are those of `huggingface_hub` (<https://huggingface.co/docs/huggingface_hub>): the
//! repository is made if it is missing; the hub says which files it keeps in large storage; their
//! bytes go there (Git LFS's batch API, in parts where the hub asks for it) unless they are there
//! already; the commit has the other files in it and names these by their SHA-256.

use super::{Hub, HubError, HubId, RequestError, base64::base64, http::HubClient, hub_error};
use crate::CheckpointError;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Bytes at the start of a file that the hub sees before it says where the file belongs.
const SAMPLE_BYTES: u64 = 512;

/// What was uploaded.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Uploaded {
    /// Files of the commit, with their bytes.
    pub files: Vec<(String, u64)>,
    /// Bytes that went to large storage; what was there already did not.
    pub stored_bytes: u64,
    /// Address of the commit.
    pub url: String,
}

/// A file of the folder.
struct File {
    name: String,
    path: PathBuf,
    bytes: u64,
    /// SHA-256 in hexadecimal of a file for large storage.
    large: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Preupload {
    files: Vec<Placed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Placed {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Commit {
    commit_url: String,
}

/// Uploads every file of `folder`, not of its subfolders, to `id`. `progress` hears each file of
/// large storage, before its bytes go.
pub(super) fn folder(
    hub: &Hub,
    id: &HubId,
    folder: &Path,
    private: bool,
    progress: &mut dyn FnMut(&str, u64),
) -> Result<Uploaded, CheckpointError> {
    if hub.offline {
        return Err(hub_error(id, HubError::Offline));
    }
    if hub.remote.token.is_none() {
        return Err(hub_error(id, HubError::NoToken));
    }
    let endpoint = hub.remote.endpoint.clone();
    let failed = |what: &str| {
        let (what, endpoint) = (what.to_owned(), endpoint.clone());
        move |source| hub_error(id, HubError::Upload { what, endpoint, source })
    };
    let client = HubClient::new(&hub.remote).map_err(failed("a connection"))?;
    let upload = Upload { id, client };
    let mut files = files(folder)?;
    upload.create(private).map_err(failed("the repository"))?;
    upload.place(&mut files)?.map_err(failed("the list of files"))?;
    let mut stored_bytes = 0;
    for object in upload.batch(&files).map_err(failed("the list of large files"))? {
        let Some(file) = files.iter().find(|file| file.large.as_ref() == Some(&object.oid)) else { continue };
        if object.actions.as_ref().is_some_and(|actions| actions.upload.is_some()) {
            progress(&file.name, file.bytes);
            stored_bytes += file.bytes;
        }
        upload.store(file, object)?.map_err(failed(&format!("`{}`", file.name)))?;
    }
    let url = upload.commit(&files)?.map_err(failed("the commit"))?;
    let files = files.into_iter().map(|file| (file.name, file.bytes)).collect();
    Ok(Uploaded { files, stored_bytes, url })
}

/// The files of a folder, not of its subfolders.
fn files(folder: &Path) -> Result<Vec<File>, CheckpointError> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let metadata = fs_err::metadata(entry.path())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if metadata.is_file() && !name.starts_with('.') {
            files.push(File { name, path: entry.path(), bytes: metadata.len(), large: None });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

struct Upload<'a> {
    id: &'a HubId,
    client: HubClient,
}

/// The disk may fail, or the hub.
type Attempt<T> = Result<Result<T, RequestError>, CheckpointError>;

impl Upload<'_> {
    /// Makes the repository; one that is there already stays as it is.
    fn create(&self, private: bool) -> Result<(), RequestError> {
        let Some((organisation, name)) = self.id.repo.split_once('/') else { return Ok(()) };
        let body = json!({ "type": "model", "organization": organisation, "name": name, "private": private });
        match self.client.post::<Value>(&self.client.url("api/repos/create"), &body) {
            Ok(_) | Err(RequestError::Status { status: 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn api(&self, what: &str) -> String {
        let revision = super::http::segment(&self.id.revision);
        self.client.url(&format!("api/models/{}/{what}/{revision}", self.id.repo))
    }

    /// Asks which files belong into large storage, and hashes them; takes out those that the hub
    /// does not want.
    fn place(&self, files: &mut Vec<File>) -> Attempt<()> {
        let mut listed = Vec::with_capacity(files.len());
        for file in files.iter() {
            let mut sample = Vec::new();
            fs_err::File::open(&file.path)?.take(SAMPLE_BYTES).read_to_end(&mut sample)?;
            listed.push(json!({ "path": file.name, "size": file.bytes, "sample": base64(&sample) }));
        }
        let answer = match self.client.post::<Preupload>(&self.api("preupload"), &json!({ "files": listed })) {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error)),
        };
        files.retain(|file| !answer.files.iter().any(|placed| placed.path == file.name && placed.should_ignore));
        for file in files {
            if answer.files.iter().any(|placed| placed.path == file.name && placed.upload_mode == "lfs") {
                file.large = Some(sha256(&file.path)?);
            }
        }
        Ok(Ok(()))
    }

    /// Asks where the large files go.
    fn batch(&self, files: &[File]) -> Result<Vec<Object>, RequestError> {
        let objects: Vec<Value> =
            files.iter().filter_map(|file| Some(json!({ "oid": file.large.as_ref()?, "size": file.bytes }))).collect();
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let url = self.client.url(&format!("{}.git/info/lfs/objects/batch", self.id.repo));
        let body = json!({ "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
            "ref": { "name": self.id.revision }, "objects": objects });
        Ok(self.client.post_lfs::<Batch>(&url, &body)?.objects)
    }

    /// Sends the bytes of a large file, unless the hub has them.
    fn store(&self, file: &File, object: Object) -> Attempt<()> {
        if let Some(error) = object.error {
            return Ok(Err(RequestError::Answer { expected: format!("a place for the file ({error})") }));
        }
        let Some(Actions { upload: Some(upload), verify }) = object.actions else { return Ok(Ok(())) };
        let sent = match part_size(&upload) {
            Some(size) => self.send_parts(file, &upload, size),
            None => self.send(file, 0..file.bytes, &upload.href).map(|sent| sent.map(|_| ())),
        };
        if let Err(error) = sent? {
            return Ok(Err(error));
        }
        let Some(verify) = verify else { return Ok(Ok(())) };
        Ok(self.client.post_lfs::<Value>(&verify.href, &json!({ "oid": object.oid, "size": file.bytes })).map(|_| ()))
    }

    /// Sends a range of a file's bytes; gives the entity tag of the answer.
    fn send(&self, file: &File, range: std::ops::Range<u64>, url: &str) -> Attempt<String> {
        let open = || {
            let mut content = fs_err::File::open(&file.path)?;
            content.seek(SeekFrom::Start(range.start))?;
            Ok::<_, std::io::Error>(content.take(range.end - range.start))
        };
        // What cannot be read is said before anything is sent.
        drop(open()?);
        Ok(self.client.put(url, range.end - range.start, open))
    }

    fn send_parts(&self, file: &File, upload: &Action, size: u64) -> Attempt<()> {
        let mut parts = Vec::new();
        for (index, start) in (0..file.bytes).step_by(usize::try_from(size).unwrap_or(usize::MAX)).enumerate() {
            let number = index + 1;
            let key = upload.header.iter().find(|(key, _)| key.parse() == Ok(number));
            let Some(url) = key.and_then(|(_, url)| url.as_str()) else {
                return Ok(Err(RequestError::Answer { expected: format!("the address of part {number}") }));
            };
            match self.send(file, start..file.bytes.min(start + size), url)? {
                Ok(etag) => parts.push(json!({ "partNumber": number, "etag": etag })),
                Err(error) => return Ok(Err(error)),
            }
        }
        let body = json!({ "oid": file.large, "parts": parts });
        Ok(self.client.post_lfs::<Value>(&upload.href, &body).map(|_| ()))
    }

    /// Makes the commit; gives its address.
    fn commit(&self, files: &[File]) -> Attempt<String> {
        let summary = format!("Upload with retie {}", env!("CARGO_PKG_VERSION"));
        let mut lines = vec![json!({ "key": "header", "value": { "summary": summary, "description": "" } })];
        for file in files {
            lines.push(match &file.large {
                Some(oid) => json!({ "key": "lfsFile",
                    "value": { "path": file.name, "algo": "sha256", "oid": oid, "size": file.bytes } }),
                None => json!({ "key": "file", "value": { "path": file.name, "encoding": "base64",
                    "content": base64(&fs_err::read(&file.path)?) } }),
            });
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        Ok(self.client.post_lines::<Commit>(&self.api("commit"), &text).map(|commit| commit.commit_url))
    }
}

/// Bytes of a part, if the hub wants a file in parts.
fn part_size(upload: &Action) -> Option<u64> {
    let size = upload.header.get("chunk_size")?;
    size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|size| *size > 0)
}

fn sha256(path: &Path) -> Result<String, CheckpointError> {
    let mut hasher = Sha256::new();
    let mut file = fs_err::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

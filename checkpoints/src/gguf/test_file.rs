//! Writer of GGUF files for tests, malformed ones included.

/// A file under construction: metadata values and tensor data are given as bytes.
#[derive(Default)]
pub struct TestFile {
    pairs: Vec<u8>,
    num_pairs: u64,
    table: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

/// A string with its length.
pub fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

/// A 32-bit integer.
pub fn u32_value(n: u32) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

/// An array of strings.
pub fn texts(items: &[&str]) -> Vec<u8> {
    let mut bytes = [&8u32.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
    items.iter().for_each(|item| bytes.extend(text(item)));
    bytes
}

/// An array of 32-bit integers.
pub fn integers(items: &[i32]) -> Vec<u8> {
    let mut bytes = [&5u32.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
    items.iter().for_each(|item| bytes.extend(item.to_le_bytes()));
    bytes
}

/// An array of 32-bit floats.
pub fn floats(items: &[f32]) -> Vec<u8> {
    let mut bytes = [&6u32.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
    items.iter().for_each(|item| bytes.extend(item.to_le_bytes()));
    bytes
}

impl TestFile {
    pub fn pair(mut self, key: &str, type_id: u32, value: &[u8]) -> Self {
        self.pairs.extend(text(key));
        self.pairs.extend(type_id.to_le_bytes());
        self.pairs.extend(value);
        self.num_pairs += 1;
        self
    }

    /// `dimensions`: fastest first.
    pub fn tensor(mut self, name: &str, dimensions: &[u64], type_id: u32, data: &[u8]) -> Self {
        self.table.extend(text(name));
        self.table.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|d| self.table.extend(d.to_le_bytes()));
        self.table.extend(type_id.to_le_bytes());
        self.table.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.num_tensors += 1;
        self
    }

    pub fn build(self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.num_tensors.to_le_bytes());
        bytes.extend(self.num_pairs.to_le_bytes());
        bytes.extend(self.pairs);
        bytes.extend(self.table);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(self.data);
        bytes
    }
}

//! Who has read which row: a gradient of rows that were gathered is a sum over these, row by row,
//! so that rows can be divided among threads.

/// For each row of a matrix, the reads of it, in their order.
pub struct Readers {
    starts: Vec<usize>,
    reads: Vec<Read>,
}

/// Row `at` of the result of one of several gathers.
#[derive(Clone, Copy, Default)]
pub struct Read {
    /// Number of the gather.
    pub gather: u32,
    pub at: u32,
}

impl Readers {
    /// Of `gathers`, each the rows that it has read.
    pub fn new<'a>(num_rows: usize, gathers: impl Iterator<Item = &'a [usize]> + Clone) -> Self {
        let mut starts = vec![0; num_rows + 1];
        gathers.clone().flatten().for_each(|row| starts[row + 1] += 1);
        for row in 0..num_rows {
            starts[row + 1] += starts[row];
        }
        let mut next = starts.clone();
        let mut reads = vec![Read::default(); starts[num_rows]];
        for (gather, rows) in gathers.enumerate() {
            for (at, row) in rows.iter().enumerate() {
                reads[next[*row]] = Read { gather: gather as u32, at: at as u32 };
                next[*row] += 1;
            }
        }
        Self { starts, reads }
    }

    /// Reads of a row.
    pub fn of(&self, row: usize) -> &[Read] {
        &self.reads[self.starts[row]..self.starts[row + 1]]
    }
}

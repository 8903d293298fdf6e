//! Pictures in rows, one for each pixel, and which rows the taps of a filter read.

use burn::tensor::Tensor;
use retie_model::kernels::RowSet;

/// Sizes of pictures in rows: picture by picture, and in each from left to right and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pictures {
    /// Number of pictures.
    pub count: usize,
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
}

impl Pictures {
    /// Rows of maps of channels: `[B, C, H, W]` → `[M, C]`.
    #[must_use]
    pub fn rows(x: Tensor<4>) -> (Tensor<2>, Self) {
        let [count, channels, height, width] = x.dims();
        let pictures = Self { count, height, width };
        (x.permute([0, 2, 3, 1]).reshape([pictures.num_rows(), channels]), pictures)
    }

    /// Maps of channels of rows: `[M, C]` → `[B, C, H, W]`.
    #[must_use]
    pub fn maps(&self, x: Tensor<2>) -> Tensor<4> {
        let [_, channels] = x.dims();
        x.reshape([self.count, self.height, self.width, channels]).permute([0, 3, 1, 2])
    }

    /// Number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.count * self.num_pixels()
    }

    /// Number of rows of a picture.
    #[must_use]
    pub fn num_pixels(&self) -> usize {
        self.height * self.width
    }

    /// Row of the pixel at `y`, `x` of a picture.
    #[must_use]
    pub fn row(&self, picture: usize, y: usize, x: usize) -> usize {
        (picture * self.height + y) * self.width + x
    }

    /// Picture, `y` and `x` of all rows, in their order.
    pub fn pixels(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let Self { height, width, .. } = *self;
        (0..self.num_rows()).map(move |row| (row / (height * width), row / width % height, row % width))
    }

    /// For each tap of a `kernel × kernel` filter around every pixel the rows that it reads,
    /// counted behind one of zeros, which stands for what is outside of a picture.
    #[must_use]
    pub fn taps(&self, kernel: usize) -> Vec<RowSet> {
        let inside = |at: usize, by: usize, size: usize| (at + by).checked_sub(kernel / 2).filter(|at| *at < size);
        let row = |(picture, y, x): (usize, usize, usize), tap: usize| {
            let found = inside(y, tap / kernel, self.height).zip(inside(x, tap % kernel, self.width));
            found.map_or(0, |(y, x)| 1 + self.row(picture, y, x))
        };
        (0..kernel * kernel).map(|tap| self.pixels().map(|pixel| row(pixel, tap)).collect()).collect()
    }

    /// Pictures of whole blocks of `size × size` pixels, a pixel for each.
    #[must_use]
    pub fn coarse(&self, size: usize) -> Self {
        Self { count: self.count, height: self.height / size, width: self.width / size }
    }

    /// For each pixel of [`Pictures::coarse`] the rows of its block.
    #[must_use]
    pub fn blocks(&self, size: usize) -> Vec<Vec<usize>> {
        let block = |(picture, y, x): (usize, usize, usize)| {
            let parts = (0..size * size).map(|part| self.row(picture, y * size + part / size, x * size + part % size));
            parts.collect()
        };
        self.coarse(size).pixels().map(block).collect()
    }

    /// For each part of a block the rows that it is in all blocks: the taps of a filter of the size
    /// of its stride.
    #[must_use]
    pub fn parts(&self, size: usize) -> Vec<RowSet> {
        let blocks = self.blocks(size);
        (0..size * size).map(|part| blocks.iter().map(|block| block[part]).collect()).collect()
    }
}

/// `x [M, C]` behind a row of zeros.
pub(super) fn behind_zeros(x: Tensor<2>) -> Tensor<2> {
    let [_, channels] = x.dims();
    Tensor::cat(vec![Tensor::zeros([1, channels], &x.device()), x], 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_reads_the_neighbours_of_a_pixel() {
        let pictures = Pictures { count: 2, height: 2, width: 3 };
        let taps = pictures.taps(3);
        // Of the last pixel of the second picture: above and to the left there are pixels.
        let read: Vec<usize> = taps.iter().map(|rows| rows.host()[11]).collect();
        assert_eq!(read, [8, 9, 0, 11, 12, 0, 0, 0, 0]);
    }

    #[test]
    fn blocks_are_squares_and_leave_out_what_does_not_fill_one() {
        let pictures = Pictures { count: 1, height: 5, width: 4 };
        assert_eq!(pictures.coarse(2), Pictures { count: 1, height: 2, width: 2 });
        assert_eq!(pictures.blocks(2), [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]);
        let parts = pictures.parts(2);
        assert_eq!(**parts[3].host(), [5, 7, 13, 15]);
    }
}

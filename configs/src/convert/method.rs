//! Methods of a conversion, what kept layers are chosen by, and what makes up for removed ones.

use crate::named::named;

named! {
    /// Method of a conversion.
    #[derive(Default)]
    Method, "method" {
        /// A recursive model: depths share layers.
        #[default]
        Recurse = "recurse",
        /// A plain model with fewer layers: layers are removed, no layer is shared. What a
        /// recursive model of the same size has to beat.
        Drop = "drop",
        /// The stack of the source with low-rank linears: matrices are replaced by pairs of
        /// factors. Another model of the same size that a recursive one has to beat.
        Svd = "svd",
    }
}

named! {
    /// What kept layers are chosen by: the KL to the source on some tokens.
    #[derive(Default)]
    SelectBy, "select_by" {
        /// Tokens of the text as they are.
        #[default]
        Text = "text",
        /// These, and half as many of sequences that say their first half or quarter again and
        /// again, scored where the next token has been read before: layers that copy from the
        /// context are missed there.
        Copying = "copying",
    }
}

named! {
    /// Compensation of kept layers for removed ones.
    Compensation, "compensation" {
        /// Kept layers equal those of the source bit for bit.
        None = "none",
        /// `o_proj` and `down_proj` of kept layers fitted by least squares, so that the residual
        /// stream is that of the source behind the removed layers.
        LeastSquares = "least_squares",
    }
}

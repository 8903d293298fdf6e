//! Head loss of one token on the CPU: its row of logits is replaced by their gradient.

use super::{
    divergence::{At, Row, divergence},
    terms::{CrossEntropyTerm, DistillTerm, HeadTerms},
    top::Outcomes,
};
use crate::kernels::cpu::simd::{LANES, exp, max, sum, sum_exp};

/// References of the terms, where requested.
#[derive(Clone, Copy)]
pub struct References<'a> {
    pub teacher: Option<Reference<'a>>,
    pub last: Option<Reference<'a>>,
}

/// Row of a reference.
#[derive(Clone, Copy)]
pub enum Reference<'a> {
    /// Logits of the vocabulary.
    Logits(&'a [f32]),
    /// Most probable tokens; their log-probabilities and that of all other tokens together.
    Top(&'a [u32], &'a [f32]),
}

/// Gradient of cross-entropy and z-loss, with `q = softmax(s)`: `own·q − uniform − hit·1[target]`.
#[derive(Clone, Copy)]
struct Text {
    log_sum: f32,
    own: f32,
    uniform: f32,
}

/// Replaces the logits by the gradient of the terms, divided by the number of tokens; returns the
/// values in the order of [`super::HeadValues`].
#[inline(always)]
pub fn row(terms: &HeadTerms, tokens: f32, student: &mut [f32], references: References<'_>, target: usize) -> [f64; 5] {
    let CrossEntropyTerm { weight, label_smoothing, z_loss } = terms.cross_entropy;
    let size = student.len() as f32;
    let shift = max(student);
    let log_sum = shift + sum_exp(student, 1.0, shift).ln();
    let nll = log_sum - student[target];
    let smoothed = match label_smoothing {
        0.0 => nll,
        _ => (1.0 - label_smoothing) * nll + label_smoothing * (log_sum - sum(student) / size),
    };
    let ce = weight / tokens;
    let text = Text { log_sum, own: ce * (1.0 + 2.0 * z_loss * log_sum), uniform: ce * label_smoothing / size };
    let mut values = [0.0; 2];
    let distilled = [terms.teacher.zip(references.teacher), terms.last.zip(references.last)];
    // The first divergence overwrites the logits; a second one works on a copy.
    let mut copy = if distilled.iter().all(Option::is_some) { student.to_vec() } else { Vec::new() };
    let mut written = false;
    for (value, (term, reference)) in values.iter_mut().zip(distilled).filter_map(|(v, a)| Some((v, a?))) {
        if written {
            let text = Text { log_sum, own: 0.0, uniform: 0.0 };
            *value = distill(term, tokens, &mut copy, reference, shift, text);
            student.iter_mut().zip(&copy).for_each(|(grad, other)| *grad += other);
        } else {
            *value = distill(term, tokens, student, reference, shift, text);
            written = true;
        }
    }
    if !written {
        for s in student.iter_mut() {
            *s = text.own * exp(*s - log_sum) - text.uniform;
        }
    }
    student[target] -= ce * (1.0 - label_smoothing);
    let square = log_sum * log_sum;
    [nll, smoothed, square, values[0], values[1]].map(f64::from)
}

/// Writes the gradient of `text` and of a divergence from `reference`; returns the divergence.
/// `shift` is the largest of the student's logits.
#[inline(always)]
fn distill(
    term: DistillTerm,
    tokens: f32,
    student: &mut [f32],
    reference: Reference<'_>,
    shift: f32,
    text: Text,
) -> f32 {
    let DistillTerm { weight, divergence: kind, temperature } = term;
    let inverse = 1.0 / temperature;
    let reference = match reference {
        Reference::Logits(logits) => logits,
        Reference::Top(ids, log_p) => return distill_top(term, tokens, student, (ids, log_p), shift, text),
    };
    let reference = &reference[..student.len()];
    let reference_shift = max(reference) * inverse;
    let log_sum_p = reference_shift + sum_exp(reference, inverse, reference_shift).ln();
    // dD/ds = (dD/d(s/T))/T, and the term has the factor T².
    let scale = weight * temperature / tokens;
    if temperature == 1.0 {
        let softmax = Softmax { inverse, log_sum_p, log_sum_q: text.log_sum };
        divergence(kind, &mut Pair::<true> { student, reference, softmax, text, scale })
    } else {
        let log_sum_q = shift * inverse + sum_exp(student, inverse, shift * inverse).ln();
        let softmax = Softmax { inverse, log_sum_p, log_sum_q };
        divergence(kind, &mut Pair::<false> { student, reference, softmax, text, scale })
    }
}

/// [`distill`] over the outcomes of [`super::top`].
#[inline(always)]
fn distill_top(
    term: DistillTerm,
    tokens: f32,
    student: &mut [f32],
    (ids, log_p): (&[u32], &[f32]),
    shift: f32,
    text: Text,
) -> f32 {
    let inverse = 1.0 / term.temperature;
    let scale = term.weight * term.temperature / tokens;
    let log_sum = match term.temperature {
        1.0 => text.log_sum,
        _ => shift * inverse + sum_exp(student, inverse, shift * inverse).ln(),
    };
    let named: Vec<f32> = ids.iter().map(|id| student[*id as usize]).collect();
    // The rest is computed by itself, for precision. `1 − Σ named` would be mostly rounding error
    // if the named tokens have nearly all probability. Adding and removing the named tokens' part
    // of the rest's gradient would be so too, if the student's rest is much smaller than the
    // teacher's.
    ids.iter().for_each(|id| student[*id as usize] = f32::NEG_INFINITY);
    let log_rest = shift * inverse + sum_exp(student, inverse, shift * inverse).ln() - log_sum;
    let log_q = named.iter().map(|s| s * inverse - log_sum).chain([log_rest]).collect();
    let mut outcomes = Outcomes { log_p, log_q, slopes: Vec::new() };
    let value = divergence(term.divergence, &mut outcomes);
    let slopes = outcomes.slopes;
    let of_rest = scale * slopes[ids.len()] / exp(log_rest);
    let Text { log_sum: text_log_sum, own, uniform } = text;
    for s in student.iter_mut() {
        *s = own * exp(*s - text_log_sum) - uniform + of_rest * exp(*s * inverse - log_sum);
    }
    for ((id, s), slope) in ids.iter().zip(&named).zip(&slopes) {
        student[*id as usize] = own * exp(s - text_log_sum) - uniform + scale * slope;
    }
    value
}

/// Softmax at a temperature: from logits to probabilities.
#[derive(Clone, Copy)]
struct Softmax {
    inverse: f32,
    log_sum_p: f32,
    log_sum_q: f32,
}

impl Softmax {
    #[inline(always)]
    fn at(self, s: f32, t: f32) -> At {
        let log_q = s * self.inverse - self.log_sum_q;
        At { log_p: t * self.inverse - self.log_sum_p, log_q, q: exp(log_q) }
    }
}

/// Logits of student and reference. `ONE` means temperature 1, where cross-entropy and divergence
/// have the same `q`.
struct Pair<'a, const ONE: bool> {
    student: &'a mut [f32],
    reference: &'a [f32],
    softmax: Softmax,
    text: Text,
    scale: f32,
}

impl<const ONE: bool> Row for Pair<'_, ONE> {
    #[inline(always)]
    fn sum(&self, f: impl Fn(At) -> [f32; 2]) -> [f32; 2] {
        let softmax = self.softmax;
        let mut lanes = [[0.0f32; LANES]; 2];
        let (students, student_rest) = self.student.as_chunks::<LANES>();
        let (references, reference_rest) = self.reference.as_chunks::<LANES>();
        for (students, references) in students.iter().zip(references) {
            for i in 0..LANES {
                let [x, y] = f(softmax.at(students[i], references[i]));
                lanes[0][i] += x;
                lanes[1][i] += y;
            }
        }
        let mut sums = lanes.map(
            #[inline(always)]
            |lanes| sum(&lanes),
        );
        for (s, t) in student_rest.iter().zip(reference_rest) {
            let [x, y] = f(softmax.at(*s, *t));
            sums[0] += x;
            sums[1] += y;
        }
        sums
    }

    #[inline(always)]
    fn write(&mut self, f: impl Fn(At) -> [f32; 2]) -> f32 {
        let slopes = Slopes::<ONE> { softmax: self.softmax, text: self.text, scale: self.scale };
        let mut lanes = [0.0f32; LANES];
        let (students, student_rest) = self.student.as_chunks_mut::<LANES>();
        let (references, reference_rest) = self.reference.as_chunks::<LANES>();
        for (students, references) in students.iter_mut().zip(references) {
            for i in 0..LANES {
                let [value, grad] = slopes.at(students[i], references[i], &f);
                lanes[i] += value;
                students[i] = grad;
            }
        }
        let mut total = sum(&lanes);
        for (s, t) in student_rest.iter_mut().zip(reference_rest) {
            let [value, grad] = slopes.at(*s, *t, &f);
            total += value;
            *s = grad;
        }
        total
    }
}

/// Elementwise step of [`Pair::write`].
#[derive(Clone, Copy)]
struct Slopes<const ONE: bool> {
    softmax: Softmax,
    text: Text,
    scale: f32,
}

impl<const ONE: bool> Slopes<ONE> {
    /// Addend of the value, and the gradient, of one logit.
    #[inline(always)]
    fn at(self, s: f32, t: f32, f: &impl Fn(At) -> [f32; 2]) -> [f32; 2] {
        let Text { log_sum, own, uniform } = self.text;
        let at = self.softmax.at(s, t);
        let [value, slope] = f(at);
        let of_text = if ONE { at.q } else { exp(s - log_sum) };
        [value, own * of_text - uniform + self.scale * slope]
    }
}

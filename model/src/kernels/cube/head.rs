//! The losses at the output head, in chunks of rows: two products for the logits of student and
//! teacher, kernels that write values and gradients, two products for the gradients.

use super::{
    divergence::{self, Term},
    launch::{dense, empty, empty_like, int_on_device, on_device, tensor},
    linear::{product, transposed},
    logits::{self, cap},
    top_probs::{self, TopRows},
};
use crate::kernels::{
    CrossEntropyTerm, DistillTerm, Head, HeadLoss, Readout, ReadoutLoss, Teacher,
    head_loss::{Chunks, KernelValues},
    kernels_of,
    reads::Late,
};
use burn::tensor::{Device, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;

/// What a divergence is taken from, in the rows of a chunk.
#[derive(Debug)]
enum Reference {
    Logits(CubeTensor),
    Top(TopRows),
}

/// Values and gradients.
pub fn head_loss(
    head: &Head,
    readouts: &[Readout],
    teacher: Option<&Teacher>,
    targets: &[u32],
    chunks: Chunks,
) -> HeadLoss<KernelValues> {
    let mut sums: Vec<Vec<Tensor<1>>> = vec![Vec::new(); readouts.len()];
    let mut grads_hidden: Vec<Vec<Tensor<2>>> = vec![Vec::new(); readouts.len()];
    let mut grad_weight: Option<Tensor<2>> = None;
    for (start, rows) in chunks.iter() {
        let hidden = |all: &Tensor<2>| all.clone().narrow(0, start, rows);
        let of_teacher = teacher.map(|teacher| match teacher {
            Teacher::Model(teacher) => Reference::Logits(logits_of(hidden(&teacher.hidden), &teacher.head)),
            Teacher::Top(top) => Reference::Top(TopRows::upload(top, start, rows, &head.weight.device())),
        });
        let all: Vec<CubeTensor> = readouts.iter().map(|r| logits_of(hidden(&r.hidden), head)).collect();
        let last = all.last().cloned().map(Reference::Logits);
        let targets = ids(&targets[start..start + rows], &head.weight.device());
        for (index, readout) in readouts.iter().enumerate() {
            let (logits, terms) = (&all[index], readout.terms);
            let (grads, values) = (empty_like(logits), empty(logits, [rows, 5]));
            let text =
                CrossEntropyTerm { weight: terms.cross_entropy.weight / chunks.tokens as f32, ..terms.cross_entropy };
            logits::cross_entropy(logits, targets.clone(), text, head.softcap, &grads, &values);
            let references = [(terms.teacher, of_teacher.as_ref()), (terms.last, last.as_ref())];
            for (column, (term, reference)) in (3..).zip(references) {
                let (Some(term), Some(reference)) = (term, reference) else { continue };
                let DistillTerm { weight, divergence, temperature } = term;
                let scale = weight * temperature / chunks.tokens as f32;
                let term = Term { divergence, temperature, scale, softcap: head.softcap };
                match reference {
                    Reference::Logits(reference) => {
                        divergence::add(logits, reference.clone(), term, &grads, &values, column);
                    }
                    Reference::Top(top) => top_probs::add(logits, top, term, &grads, &values, column),
                }
            }
            sums[index].push(tensor::<2>(values).reshape([5 * rows]));
            grads_hidden[index].push(tensor(product(grads.clone(), on_device(head.weight.clone()))));
            let of_chunk = tensor(product(transposed(grads), on_device(hidden(&readout.hidden))));
            grad_weight = Some(match grad_weight {
                Some(sum) => sum + of_chunk,
                None => of_chunk,
            });
        }
    }
    let readouts = sums.into_iter().zip(grads_hidden).map(|(sums, grads)| ReadoutLoss {
        values: KernelValues::Sums(Box::new(Late::new(Tensor::cat(sums, 0)))),
        grad_hidden: Tensor::cat(grads, 0),
    });
    let readouts = readouts.collect();
    HeadLoss { readouts, grad_weight: grad_weight.unwrap_or_else(|| head.weight.zeros_like()) }
}

fn logits_of(hidden: Tensor<2>, head: &Head) -> CubeTensor {
    let kernels = kernels_of(&hidden.device());
    let logits = dense(on_device(kernels.linear(hidden, head.weight.clone())));
    if let Some(softcap) = head.softcap {
        cap(&logits, softcap);
    }
    logits
}

/// Token ids on the device.
pub fn ids(ids: &[u32], device: &Device) -> CubeTensor {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    int_on_device(Tensor::<1, Int>::from_ints(ids.as_slice(), device))
}

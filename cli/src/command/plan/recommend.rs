//! The plan that is recommended, and what would help where none fits.

use super::row::{Candidate, Kind, Limits};
use retie_config::UptrainConfig;
use retie_report::number::{bytes, grouped};

/// Index of the plan with the most effective parameters of those that fit the memory and have at
/// most `size` parameters; of those that fit, where none is as small. `None` if none fits. A run
/// in stages fits if every stage does.
pub fn recommended(plans: &[Candidate], limits: &Limits, size: Option<usize>) -> Option<usize> {
    if !plans.iter().any(|plan| plan.kind == Kind::Conversion) {
        let longest = |a: &usize, b: &usize| plans[*a].memory.total().cmp(&plans[*b].memory.total());
        let fits = plans.iter().all(|plan| plan.fits(limits));
        return (0..plans.len()).max_by(longest).filter(|_| fits);
    }
    let fitting = || (0..plans.len()).filter(|index| plans[*index].fits(limits));
    let is_small = |index: &usize| size.is_none_or(|size| plans[*index].parameters() <= size);
    // Of equals the first.
    let best = |a: &usize, b: &usize| {
        plans[*a].effective_parameters().total_cmp(&plans[*b].effective_parameters()).then(b.cmp(a))
    };
    fitting().filter(is_small).max_by(best).or_else(|| fitting().max_by(best))
}

/// Why the plan `index` is recommended.
pub fn reason(plans: &[Candidate], index: usize, limits: &Limits, size: Option<usize>) -> String {
    let plan = &plans[index];
    if plan.kind != Kind::Conversion {
        let left = bytes((limits.memory - plan.memory.total()) as u64);
        return format!("it fits, with {left} to spare on each process");
    }
    let is_small = |plan: &&Candidate| size.is_none_or(|size| plan.parameters() <= size);
    let fitting = || plans.iter().filter(|plan| plan.fits(limits));
    let small = fitting().filter(is_small).count();
    let of = match size.filter(|_| small > 0) {
        Some(size) => {
            format!("the {small} plans that fit and have at most {} parameters (`--size`)", grouped(size as u64))
        }
        None => format!("the {} plans that fit, none of them as small as `--size` says", fitting().count()),
    };
    let effective = grouped((plan.effective_parameters() / 1e6).round() as u64);
    format!("of {of}, it has the most effective parameters, {effective}M (prior: N_once + R^0.46·N_loop)")
}

/// The message where no plan fits: which comes closest, what it needs, and what would do.
pub fn nothing_fits(plans: &[Candidate], limits: &Limits) -> String {
    let Some((plan, run)) = plans
        .iter()
        .map(|plan| (plan, smallest(&plan.run, limits, plan.kind != Kind::Run)))
        .min_by_key(|(plan, run)| plan.memory_of(run, limits).total())
    else {
        return "there is no plan".to_owned();
    };
    let need = |run: &UptrainConfig| plan.memory_of(run, limits).total();
    let (recursions, rank) = plan.shape();
    let name = format!(
        "{} with {recursions} recursions and {}",
        plan.label,
        match rank {
            0 => "no LoRA".to_owned(),
            rank => format!("LoRA of rank {rank}"),
        }
    );
    let (sequences, length) = (run.train.batch_size, run.data.sequence_length);
    let mut would = vec![format!("`--memory {}MiB` would do", need(&run).div_ceil(1 << 20))];
    let mut offer = |what: String, total: usize| {
        let fits = if total <= limits.memory { "fits" } else { "is still too much" };
        would.push(format!("{what} needs {}, which {fits}", bytes(total as u64)));
    };
    let smaller = smallest(&run, limits, true);
    if plan.kind == Kind::Run && need(&smaller) < need(&run) {
        let divided = if limits.gpus > 1 { " and a divided optimizer" } else { "" };
        offer(format!("one sequence with gradient checkpointing{divided}"), need(&smaller));
    }
    let mut shorter = smaller.clone();
    shorter.data.sequence_length = (length / 4).max(1);
    offer(format!("a `sequence_length` of {} besides", length / 4), need(&shorter));
    let cached = retie_trainer::run_memory(&shorter, plan.with_cached_logits(), limits.kernels, limits.gpus);
    offer("that with cached logits in place of a teacher".to_owned(), cached.total());
    format!(
        "no plan fits into {}, for each of {} processes: the smallest, {name}, needs {} with {sequences} × {length} tokens\nhint: {}",
        bytes(limits.memory as u64),
        limits.gpus,
        bytes(need(&run) as u64),
        would.join("; ")
    )
}

/// `run` with the least memory, if it may be changed.
fn smallest(run: &UptrainConfig, limits: &Limits, may_change: bool) -> UptrainConfig {
    let mut run = run.clone();
    if may_change {
        run.train.batch_size = 1;
        run.train.checkpoint_recursions = true;
        run.train.shard_optimizer = limits.gpus > 1;
    }
    run
}

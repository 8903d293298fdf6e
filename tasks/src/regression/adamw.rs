//! AdamW (<https://arxiv.org/abs/1711.05101>) of a list of parameters.

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.01;

pub(super) struct AdamW {
    learning_rate: f64,
    steps: i32,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl AdamW {
    pub(super) fn new(learning_rate: f64, parameters: usize) -> Self {
        Self { learning_rate, steps: 0, first: vec![0.0; parameters], second: vec![0.0; parameters] }
    }

    pub(super) fn step(&mut self, parameters: &mut [f64], gradient: &[f64]) {
        self.steps += 1;
        let (first, second) = (1.0 - BETA1.powi(self.steps), 1.0 - BETA2.powi(self.steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((parameter, gradient), (mean, square)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *mean = BETA1 * *mean + (1.0 - BETA1) * gradient;
            *square = BETA2 * *square + (1.0 - BETA2) * gradient * gradient;
            let direction = (*mean / first) / ((*square / second).sqrt() + EPSILON);
            *parameter -= self.learning_rate * (direction + WEIGHT_DECAY * *parameter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // torch.optim.AdamW(lr=0.1) in f64 on [1, -2] with gradients [0.5, -3] and [0.1, 1]:
    // tests/golden/make_adamw.py.
    #[test]
    fn two_steps_are_those_of_pytorch() {
        let mut parameters = [1.0, -2.0];
        let mut optimizer = AdamW::new(0.1, 2);
        optimizer.step(&mut parameters, &[0.5, -3.0]);
        optimizer.step(&mut parameters, &[0.1, 1.0]);
        let expected = [0.8177969063826518, -1.8560801433165766];
        assert!(parameters.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12));
    }
}

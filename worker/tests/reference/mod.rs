//! The same mathematics written independently: ResNets in plain tch autograd, BatchNorm over the whole batch.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use lockstep_proto::recipe::{Activation, BnOrder, BnPosition, Model, Shortcut, StrideOn};
use lockstep_worker::compute::{Dtype, Named};
use tch::{Kind, Tensor};

/// Weights, momentum and running statistics by name.
pub struct Reference {
    pub params: BTreeMap<String, Tensor>,
    pub momentum: BTreeMap<String, Tensor>,
    pub running: BTreeMap<String, Tensor>,
    recipe: Model,
}

pub fn tensor(named: &Named) -> Tensor {
    let shape: Vec<i64> = named.shape.iter().map(|s| *s as i64).collect();
    let values: Vec<f64> = match named.dtype {
        Dtype::F64 => named.bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F32 => {
            named.bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        }
    };
    let kind = if named.dtype == Dtype::F64 { Kind::Double } else { Kind::Float };
    Tensor::from_slice(&values).view(shape.as_slice()).to_kind(kind)
}

impl Reference {
    pub fn new(model: &[Named], recipe: &Model) -> Self {
        let (mut params, mut running, mut momentum) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for named in model {
            if named.name.contains("running") {
                running.insert(named.name.clone(), tensor(named));
            } else {
                let value = tensor(named);
                momentum.insert(named.name.clone(), value.zeros_like());
                params.insert(named.name.clone(), value.set_requires_grad(true));
            }
        }
        Self { params, momentum, running, recipe: recipe.clone() }
    }

    fn norm(&mut self, name: &str, x: &Tensor) -> Tensor {
        let mean = self.running.get(&format!("{name}.running_mean")).unwrap();
        let var = self.running.get(&format!("{name}.running_var")).unwrap();
        let (gamma, beta) = (&self.params[&format!("{name}.weight")], &self.params[&format!("{name}.bias")]);
        x.batch_norm(Some(gamma), Some(beta), Some(mean), Some(var), true, 0.1, 1e-5, false)
    }

    fn conv(&self, name: &str, x: &Tensor, stride: i64) -> Tensor {
        let weight = &self.params[&format!("{name}.weight")];
        let pad = weight.size()[3] / 2;
        let bias = self.params.get(&format!("{name}.bias"));
        x.conv2d(weight, bias, [stride, stride], [pad, pad], [1, 1], 1)
    }

    fn act(&self, x: &Tensor) -> Tensor {
        match self.recipe.activation {
            Activation::Relu => x.relu(),
            Activation::LeakyRelu => x.maximum(&(x * self.recipe.leaky_slope)),
        }
    }

    fn norm_act(&mut self, name: &str, x: &Tensor) -> Tensor {
        match self.recipe.bn_order {
            BnOrder::BeforeActivation => {
                let y = self.norm(name, x);
                self.act(&y)
            }
            BnOrder::AfterActivation => self.norm(name, &self.act(x)),
        }
    }

    fn shortcut(&mut self, name: &str, x: &Tensor, to: i64, stride: i64) -> Tensor {
        let changes = stride == 2 || x.size()[1] != to;
        match self.recipe.shortcut {
            Shortcut::A if changes => {
                let pixels = x.slice(2, None, None, stride).slice(3, None, None, stride);
                let more = to - x.size()[1];
                pixels.constant_pad_nd([0, 0, 0, 0, 0, more])
            }
            Shortcut::A => x.shallow_clone(),
            Shortcut::B if !changes => x.shallow_clone(),
            Shortcut::B | Shortcut::C => {
                let y = self.conv(&format!("{name}.downsample.0"), x, stride);
                self.norm(&format!("{name}.downsample.1"), &y)
            }
        }
    }

    /// The last addition of a block and what follows it.
    fn ending(&mut self, norm: &str, y: &Tensor, shortcut: Tensor) -> Tensor {
        match (self.recipe.bn_position, self.recipe.final_relu) {
            (BnPosition::BeforeAdd, true) => {
                let sum = self.norm(norm, y) + shortcut;
                self.act(&sum)
            }
            (BnPosition::BeforeAdd, false) => self.norm(norm, y) + shortcut,
            (BnPosition::AfterAdd, true) => self.norm_act(norm, &(y + shortcut)),
            (BnPosition::AfterAdd, false) => self.norm(norm, &(y + shortcut)),
        }
    }

    /// ResNet-18 or -50, as torchvision writes them.
    fn imagenet(&mut self, x: &Tensor) -> Tensor {
        let y = self.conv("conv1", x, 2);
        let y = self.norm_act("bn1", &y);
        let mut x = y.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        let is_deep = self.params.contains_key("layer1.0.conv3.weight");
        for stage in 1..=4 {
            for block in 0.. {
                let name = format!("layer{stage}.{block}");
                if !self.params.contains_key(&format!("{name}.conv1.weight")) {
                    break;
                }
                let stride = if stage > 1 && block == 0 { 2 } else { 1 };
                let last = if is_deep { 3 } else { 2 };
                let strided = match (is_deep, self.recipe.stride_on) {
                    (true, StrideOn::Middle) => 2,
                    _ => 1,
                };
                let mut y = x.shallow_clone();
                for conv in 1..=last {
                    y = self.conv(&format!("{name}.conv{conv}"), &y, if conv == strided { stride } else { 1 });
                    if conv < last {
                        y = self.norm_act(&format!("{name}.bn{conv}"), &y);
                    }
                }
                let shortcut = self.shortcut(&name, &x, y.size()[1], stride);
                x = self.ending(&format!("{name}.bn{last}"), &y, shortcut);
            }
        }
        self.classify(&x)
    }

    fn classify(&self, x: &Tensor) -> Tensor {
        let pooled = x.mean_dim([2i64, 3].as_slice(), false, None::<Kind>);
        pooled.matmul(&self.params["fc.weight"].tr()) + &self.params["fc.bias"]
    }

    fn forward(&mut self, x: &Tensor) -> Tensor {
        if self.recipe.arch.is_imagenet() {
            return self.imagenet(x);
        }
        let y = self.conv("conv1", x, 1);
        let mut x = self.norm_act("bn1", &y);
        for stage in 1..=3 {
            for block in 0..self.recipe.n {
                let name = format!("layer{stage}.{block}");
                let stride = if stage > 1 && block == 0 { 2 } else { 1 };
                let y = self.conv(&format!("{name}.conv1"), &x, stride);
                let y = self.norm_act(&format!("{name}.bn1"), &y);
                let y = self.conv(&format!("{name}.conv2"), &y, 1);
                let shortcut = self.shortcut(&name, &x, y.size()[1], stride);
                x = self.ending(&format!("{name}.bn2"), &y, shortcut);
            }
        }
        self.classify(&x)
    }

    /// Gradients by name and the mean loss; running statistics move.
    pub fn gradient(&mut self, x_nchw: &Tensor, labels: &Tensor) -> (f64, BTreeMap<String, Tensor>) {
        // not `cross_entropy_for_logits`: it computes in 32 bits whatever comes in
        self.gradient_of(x_nchw, |logits| logits.log_softmax(-1, logits.kind()).nll_loss(labels))
    }

    /// The same for another loss of the logits.
    pub fn gradient_of(
        &mut self,
        x_nchw: &Tensor,
        loss: impl FnOnce(&Tensor) -> Tensor,
    ) -> (f64, BTreeMap<String, Tensor>) {
        let logits = self.forward(x_nchw);
        let loss = loss(&logits);
        let names: Vec<&String> = self.params.keys().collect();
        let params: Vec<&Tensor> = self.params.values().collect();
        let gradients = Tensor::run_backward(&[&loss], &params, false, false);
        let named = names.into_iter().cloned().zip(gradients).collect();
        (loss.double_value(&[]), named)
    }

    /// One step of SGD with Nesterov momentum 0.9 and weight decay 1e-4 on everything.
    pub fn step(&mut self, x_nchw: &Tensor, labels: &Tensor, lr: f64) -> f64 {
        let (loss, gradients) = self.gradient(x_nchw, labels);
        tch::no_grad(|| {
            for (name, gradient) in gradients {
                let param = self.params.get_mut(&name).unwrap();
                let gradient = gradient + &*param * 1e-4;
                let momentum = self.momentum.get_mut(&name).unwrap();
                *momentum = &*momentum * 0.9 + &gradient;
                let update = gradient + &*momentum * 0.9;
                let _ = param.f_sub_(&(update * lr)).unwrap();
            }
        });
        loss
    }
}

/// Largest difference over largest magnitude.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let scale = b.abs().max().double_value(&[]).max(1e-30);
    (a - b).abs().max().double_value(&[]) / scale
}

/// ‖a − b‖ / ‖b‖
pub fn relative_norm(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    ((a - &b).norm() / b.norm()).double_value(&[])
}

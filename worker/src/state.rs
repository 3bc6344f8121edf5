//! The state of a replica: flat parameters, the optimizer's buffers, running statistics, and its name.

use std::collections::BTreeMap;

use lockstep_proto::draws::Draws;
use lockstep_proto::ids::{Epoch, StateId};
use lockstep_proto::message::Sha256;
use lockstep_proto::recipe::{Precision, Solver};
use lockstep_torch::{TorchError, read_bytes, write_bytes};
use sha2::{Digest, Sha256 as Hasher};
use tch::{Device, Kind, Tensor};

use crate::average::{Average, PREFIX};
use crate::compute::{Dtype, Named};
use crate::optim;
use crate::program::{FlatLayout, Init, ParamId, Program};

/// Keeps initialisation apart from every other use of the seed.
const INIT_STREAM: u64 = 0x1217_5eed_0000_0001;

/// A state that does not fit the model.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A tensor that the model has is not there.
    #[error("tensor `{0}` is missing: the checkpoint is of another model")]
    Missing(String),
    /// A tensor that the model does not have.
    #[error("tensor `{0}` is unknown: the checkpoint is of another model")]
    Unknown(String),
    /// Another shape or type.
    #[error("tensor `{name}` is {have}, the model's is {want}")]
    Shape {
        /// Its name.
        name: String,
        /// Type and shape in the file.
        have: String,
        /// Type and shape in the model.
        want: String,
    },
    /// A flat state of another length.
    #[error("a state of {have} bytes, the model's has {want}")]
    Length {
        /// Bytes that came.
        have: usize,
        /// Bytes of the model's.
        want: usize,
    },
    /// libtorch.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

/// Running statistics of one norm layer, in numbers that the checkpoint's precision holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Unbiased variance of each channel.
    pub variance: Vec<f64>,
}

/// One number a parameter that an optimizer keeps.
#[derive(Debug)]
pub struct Buffer {
    /// `momentum`: tensors of it are saved as `momentum.<parameter>`.
    pub name: &'static str,
    /// Flat, in the parameters' type.
    pub values: Tensor,
}

/// All that a replica must hold to go on.
#[derive(Debug)]
pub struct State {
    /// Its name; `None` before any.
    pub id: Option<StateId>,
    /// Parameters, flat: f32, or f64 with `precision = "fp64"`.
    pub master: Tensor,
    /// The optimizer's buffers, same layout.
    pub buffers: Vec<Buffer>,
    /// By norm layer.
    pub running: Vec<Running>,
    /// With `train.ema_decay`.
    pub average: Option<Average>,
}

impl State {
    /// Zeros of the right size, for a precision and a solver.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(
        program: &Program,
        layout: &FlatLayout,
        precision: Precision,
        solver: Solver,
    ) -> Result<Self, TorchError> {
        let kind = if precision == Precision::Fp64 { Kind::Double } else { Kind::Float };
        let flat = || Tensor::f_zeros([layout.len as i64], (kind, Device::Cpu));
        let buffer = |name: &&'static str| Ok(Buffer { name, values: flat()? });
        let buffers = optim::buffers(solver).iter().map(buffer).collect::<Result<_, TorchError>>()?;
        let mut state = Self { id: None, master: flat()?, buffers, running: Vec::new(), average: None };
        state.reset_running(program);
        Ok(state)
    }

    fn reset_running(&mut self, program: &Program) {
        let fresh = |channels| Running { mean: vec![0.0; channels], variance: vec![1.0; channels] };
        self.running = program.norms.iter().map(|norm| fresh(norm.channels)).collect();
    }

    /// Step 0: every number from (seed, parameter, index), whoever draws it.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn initialise(&mut self, program: &Program, layout: &FlatLayout, seed: u64) -> Result<(), TorchError> {
        let _ = self.master.f_zero_()?;
        for buffer in &mut self.buffers {
            let _ = buffer.values.f_zero_()?;
        }
        self.reset_running(program);
        for (i, param) in program.params.iter().enumerate() {
            let mut draws = Draws::new(seed ^ INIT_STREAM, Epoch(i as u64), 0);
            let values: Vec<f64> = (0..param.numel()).map(|_| draw(param.init, &mut draws)).collect();
            let logical = Tensor::f_from_slice(&values)?.f_view(param.shape.as_slice())?;
            self.view(program, layout, ParamId(i))?.f_copy_(&logical)?;
        }
        self.restart_average()?;
        self.id = None;
        Ok(())
    }

    /// A parameter as a tensor of its logical shape over the flat buffer; convolutions channels-last.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn view(&self, program: &Program, layout: &FlatLayout, id: ParamId) -> Result<Tensor, TorchError> {
        view_of(&self.master, program, layout, id)
    }

    /// Parameters and running statistics by name, sorted.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn model(&self, program: &Program, layout: &FlatLayout) -> Result<Vec<Named>, TorchError> {
        let mut named = self.named(&self.master, "", program, layout)?;
        named.extend(self.named_running(&self.running, "", program));
        named.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(named)
    }

    /// The optimizer's state by name, sorted: `momentum.<parameter>` and the like, and of an average `ema.<parameter>`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn optimizer(&self, program: &Program, layout: &FlatLayout) -> Result<Vec<Named>, TorchError> {
        let mut named = Vec::new();
        for Buffer { name, values } in &self.buffers {
            named.extend(self.named(values, &format!("{name}."), program, layout)?);
        }
        if let Some(average) = &self.average {
            named.extend(self.named(&average.values, PREFIX, program, layout)?);
            named.extend(self.named_running(&average.running, PREFIX, program));
        }
        named.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(named)
    }

    /// Takes over tensors as [`model`](Self::model) and [`optimizer`](Self::optimizer) gave them.
    ///
    /// # Errors
    /// Names, shapes or types that are not this model's; nothing is guessed.
    pub fn load(
        &mut self,
        program: &Program,
        layout: &FlatLayout,
        model: &[Named],
        optimizer: &[Named],
    ) -> Result<(), StateError> {
        check(&self.model(program, layout)?, model)?;
        check(&self.optimizer(program, layout)?, optimizer)?;
        let model: BTreeMap<&str, &Named> = model.iter().map(|t| (t.name.as_str(), t)).collect();
        let optimizer: BTreeMap<&str, &Named> = optimizer.iter().map(|t| (t.name.as_str(), t)).collect();
        for (i, param) in program.params.iter().enumerate() {
            let buffers = self
                .buffers
                .iter()
                .map(|buffer| (&buffer.values, &optimizer, format!("{}.{}", buffer.name, param.name)));
            let average = self.average.iter().map(|of| (&of.values, &optimizer, format!("{PREFIX}{}", param.name)));
            let own = std::iter::once((&self.master, &model, param.name.clone()));
            for (flat, source, name) in own.chain(buffers).chain(average) {
                let Some(named) = source.get(name.as_str()) else { return Err(StateError::Missing(name)) };
                let mut logical =
                    Tensor::f_empty(param.shape.as_slice(), (flat.kind(), Device::Cpu)).map_err(TorchError::from)?;
                write_bytes(&mut logical, &named.bytes)?;
                view_of(flat, program, layout, ParamId(i))?.f_copy_(&logical).map_err(TorchError::from)?;
            }
        }
        let double = self.dtype() == Dtype::F64;
        let averaged = self.average.iter_mut().map(|average| (&mut average.running, &optimizer, PREFIX));
        for (layers, source, prefix) in std::iter::once((&mut self.running, &model, "")).chain(averaged) {
            for (norm, running) in program.norms.iter().zip(layers) {
                for (suffix, values) in [("running_mean", &mut running.mean), ("running_var", &mut running.variance)] {
                    let name = format!("{prefix}{}.{suffix}", norm.name);
                    let Some(named) = source.get(name.as_str()) else { return Err(StateError::Missing(name)) };
                    *values = bytes_to_numbers(&named.bytes, double);
                }
            }
        }
        Ok(())
    }

    /// Hash over names, types, shapes and content of all tensors: the identity of the state.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn sha256(&self, program: &Program, layout: &FlatLayout) -> Result<Sha256, TorchError> {
        let mut hasher = Hasher::new();
        for tensor in self.model(program, layout)?.into_iter().chain(self.optimizer(program, layout)?) {
            hasher.update(tensor.name.as_bytes());
            hasher.update([0, if tensor.dtype == Dtype::F64 { 64 } else { 32 }]);
            for size in &tensor.shape {
                hasher.update((*size as u64).to_le_bytes());
            }
            hasher.update(&tensor.bytes);
        }
        Ok(hex(&hasher.finalize()))
    }

    /// The whole state flat, for the broadcast.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TorchError> {
        let mut bytes = read_bytes(&self.master)?;
        for buffer in &self.buffers {
            bytes.extend(read_bytes(&buffer.values)?);
        }
        if let Some(average) = &self.average {
            bytes.extend(read_bytes(&average.values)?);
        }
        for running in self.running.iter().chain(self.average.iter().flat_map(|average| &average.running)) {
            bytes.extend(running.mean.iter().chain(&running.variance).flat_map(|x| x.to_le_bytes()));
        }
        Ok(bytes)
    }

    /// Takes over what [`to_bytes`](Self::to_bytes) gave.
    ///
    /// # Errors
    /// Another length.
    pub fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let flat = self.master.numel() * self.master.kind().elt_size_in_bytes();
        let numbers: usize = self.running.iter().map(|r| r.mean.len() + r.variance.len()).sum();
        let sets = 1 + usize::from(self.average.is_some());
        let want = (sets + self.buffers.len()) * flat + sets * 8 * numbers;
        if bytes.len() != want {
            return Err(StateError::Length { have: bytes.len(), want });
        }
        let (own, mut rest) = bytes.split_at(flat);
        write_bytes(&mut self.master, own)?;
        let averaged = self.average.iter_mut().map(|average| &mut average.values);
        for values in self.buffers.iter_mut().map(|buffer| &mut buffer.values).chain(averaged) {
            let (own, after) = rest.split_at(flat);
            write_bytes(values, own)?;
            rest = after;
        }
        let mut rest = bytes_to_numbers(rest, true).into_iter();
        let averaged = self.average.iter_mut().flat_map(|average| &mut average.running);
        for running in self.running.iter_mut().chain(averaged) {
            running.mean.iter_mut().chain(&mut running.variance).zip(rest.by_ref()).for_each(|(to, from)| *to = from);
        }
        Ok(())
    }

    fn dtype(&self) -> Dtype {
        if self.master.kind() == Kind::Double { Dtype::F64 } else { Dtype::F32 }
    }

    fn named(
        &self,
        flat: &Tensor,
        prefix: &str,
        program: &Program,
        layout: &FlatLayout,
    ) -> Result<Vec<Named>, TorchError> {
        let one = |(i, param): (usize, &crate::program::Param)| {
            let logical = view_of(flat, program, layout, ParamId(i))?.f_contiguous()?;
            Ok(Named {
                name: format!("{prefix}{}", param.name),
                dtype: self.dtype(),
                shape: param.shape.iter().map(|s| *s as usize).collect(),
                bytes: read_bytes(&logical)?,
            })
        };
        program.params.iter().enumerate().map(one).collect()
    }

    fn named_running(&self, layers: &[Running], prefix: &str, program: &Program) -> Vec<Named> {
        let mut named = Vec::new();
        for (norm, running) in program.norms.iter().zip(layers) {
            for (suffix, values) in [("running_mean", &running.mean), ("running_var", &running.variance)] {
                let (name, shape) = (format!("{prefix}{}.{suffix}", norm.name), vec![norm.channels]);
                named.push(Named { name, dtype: self.dtype(), shape, bytes: self.numbers_to_bytes(values) });
            }
        }
        named
    }

    fn numbers_to_bytes(&self, values: &[f64]) -> Vec<u8> {
        match self.dtype() {
            Dtype::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F32 => values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        }
    }
}

/// A parameter's view of any flat buffer of the layout.
///
/// # Errors
/// What libtorch says.
pub fn view_of(flat: &Tensor, program: &Program, layout: &FlatLayout, id: ParamId) -> Result<Tensor, TorchError> {
    let (entry, shape) = (layout.entries[id.0], &program.params[id.0].shape);
    let strides: Vec<i64> = match shape.as_slice() {
        [_, i, kh, kw] => vec![i * kh * kw, 1, kw * i, *i],
        [_, i] => vec![*i, 1],
        _ => vec![1],
    };
    Ok(flat.f_as_strided(shape.as_slice(), strides.as_slice(), Some(entry.offset as i64))?)
}

fn draw(init: Init, draws: &mut Draws) -> f64 {
    match init {
        Init::Constant(value) => value,
        Init::Uniform { bound } => (2.0 * draws.unit() - 1.0) * bound,
        Init::Unit => draws.unit(),
        // Box and Muller 1958; 1 − u is never 0
        Init::Normal { mean, std } => {
            let radius = (-2.0 * (1.0 - draws.unit()).ln()).sqrt();
            mean + std * radius * (std::f64::consts::TAU * draws.unit()).cos()
        }
    }
}

fn check(want: &[Named], have: &[Named]) -> Result<(), StateError> {
    let by_name: BTreeMap<&str, &Named> = have.iter().map(|t| (t.name.as_str(), t)).collect();
    for tensor in want {
        let Some(found) = by_name.get(tensor.name.as_str()) else {
            return Err(StateError::Missing(tensor.name.clone()));
        };
        if (found.dtype, &found.shape, found.bytes.len()) != (tensor.dtype, &tensor.shape, tensor.bytes.len()) {
            let say = |t: &Named| format!("{:?} {:?}", t.dtype, t.shape);
            return Err(StateError::Shape { name: tensor.name.clone(), have: say(found), want: say(tensor) });
        }
    }
    let known: std::collections::BTreeSet<&str> = want.iter().map(|t| t.name.as_str()).collect();
    match have.iter().find(|t| !known.contains(t.name.as_str())) {
        Some(extra) => Err(StateError::Unknown(extra.name.clone())),
        None => Ok(()),
    }
}

fn bytes_to_numbers(bytes: &[u8], double: bool) -> Vec<f64> {
    if double {
        bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
    } else {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect()
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

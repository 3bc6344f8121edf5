//! Which way to do BatchNorm is faster on this device: measured once, on a layer of middling size.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lockstep_cuda::{Device, Fused};
use lockstep_torch::{Activation, TorchError};
use tch::{Kind, Tensor};

use super::body::norm::{Affine, Norms, Sums};
use super::cuda::Options;

/// NCHW.
const SHAPE: [i64; 4] = [64, 64, 28, 28];
/// Layers in a row, and how often.
const LAYERS: usize = 20;
const ROUNDS: usize = 3;
/// A trial that takes longer says nothing.
const LIMIT: Duration = Duration::from_secs(20);

/// The kernels, if they can be had and are faster, or if all ranks must decide alike. Says why not.
pub fn fused(device: &Device, options: Options) -> Option<Fused> {
    let fused = match device.kernels(cache().as_deref()) {
        Ok(fused) => fused,
        Err(error) => {
            tracing::info!("BatchNorm by libtorch's operations: {error}");
            return None;
        }
    };
    if options.deterministic {
        return Some(fused);
    }
    let composed = Norms::new(None, options.kind);
    let own = Norms::new(Some(fused.clone()), options.kind);
    let place = tch::Device::Cuda(device.ordinal() as usize);
    let drain = || drain(device);
    match time(&composed, (place, options.kind), &drain)
        .and_then(|c| Ok((c, time(&own, (place, options.kind), &drain)?)))
    {
        Ok((theirs, ours)) => {
            let (theirs, ours) = (theirs.as_secs_f64() * 1e6, ours.as_secs_f64() * 1e6);
            tracing::info!("BatchNorm, forward and backward: {ours:.0} µs by kernels, {theirs:.0} µs by libtorch");
            (ours < theirs).then_some(fused)
        }
        Err(error) => {
            tracing::warn!("BatchNorm by libtorch's operations: the kernels failed: {error}");
            None
        }
    }
}

/// Where compiled kernels are kept.
fn cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = set("LOCKSTEP_CACHE").or_else(|| base().map(|base| base.join("lockstep")));
    cache.map(|cache| cache.join("kernels"))
}

fn drain(device: &Device) -> Result<(), TorchError> {
    let began = Instant::now();
    while !device.compute.is_idle().map_err(|error| TorchError::new(error.to_string()))? {
        if began.elapsed() > LIMIT {
            return Err(TorchError::new("a trial that does not end"));
        }
        std::hint::spin_loop();
    }
    Ok(())
}

/// The best time of a layer, forward and backward.
fn time(
    norms: &Norms,
    (place, kind): (tch::Device, Kind),
    drain: &dyn Fn() -> Result<(), TorchError>,
) -> Result<Duration, TorchError> {
    let layer = Layer::new(place, kind)?;
    layer.run(norms)?;
    let mut best = LIMIT;
    for _ in 0..ROUNDS {
        drain()?;
        let began = Instant::now();
        for _ in 0..LAYERS {
            layer.run(norms)?;
        }
        drain()?;
        best = best.min(began.elapsed() / LAYERS as u32);
    }
    Ok(best)
}

struct Layer {
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
}

impl Layer {
    fn new(place: tch::Device, kind: Kind) -> Result<Self, TorchError> {
        let [n, c, h, w] = SHAPE;
        let x = Tensor::f_ones([n, h, w, c], (kind, place))?.f_permute([0, 3, 1, 2])?;
        let of = |value: f64| Tensor::f_full([c], value, (Kind::Float, place));
        Ok(Self { x, gamma: of(1.0)?, beta: of(0.0)? })
    }

    fn run(&self, norms: &Norms) -> Result<(), TorchError> {
        let Self { x, gamma, beta } = self;
        let mut message = Tensor::f_zeros([2 * SHAPE[1]], (Kind::Double, x.device()))?;
        norms.stats(x, &mut message)?;
        let affine = Affine { gamma, beta, eps: 1e-5 };
        let sums = Sums { sums: &message, samples: SHAPE[0] as u64, pixels: (SHAPE[2] * SHAPE[3]) as u64 };
        let statistics = norms.statistics(&sums, &affine)?;
        let y = norms.apply((x, Some(x)), Activation::Relu, &statistics, &affine)?;
        let gated = norms.gate((&y, None), (&y, Activation::Relu), (x, &statistics), &mut message)?;
        let [mut d_gamma, mut d_beta] = [gamma.f_empty_like()?, beta.f_empty_like()?];
        norms.parameter_gradients(&message, (gamma, &statistics), [&mut d_gamma, &mut d_beta])?;
        let _ = norms.gradient((&gated, x), &message, (gamma, &statistics))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_runs_every_pass_and_gives_a_time() {
        let composed = Norms::new(None, Kind::Float);
        let best = time(&composed, (tch::Device::Cpu, Kind::Float), &|| Ok(())).unwrap();
        assert!(best > Duration::ZERO && best < LIMIT);
    }
}

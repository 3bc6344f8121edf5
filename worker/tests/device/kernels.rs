//! A device whose BatchNorm is our kernels, run on the host, against one of libtorch's operations.

use std::sync::Arc;

use lockstep_collective::{Collective, Solo};
use lockstep_cuda::{Fused, Launcher};
use lockstep_kernels::host::{Host, ORDERS};
use lockstep_kernels::{Device, KernelError, Launch};
use lockstep_proto::ids::{Generation, Step};
use lockstep_proto::recipe::{Arch, BatchNorm, Precision, Reduction};
use lockstep_worker::compute::Compute;
use lockstep_worker::device::{DeviceTrainer, HostGpu};

use super::{begin, distance, mesh, on_host, plan, recipe};

struct OnHost(Host);

impl Launcher for OnHost {
    fn device(&self) -> Device {
        *self.0.device()
    }

    fn place(&self) -> tch::Device {
        tch::Device::Cpu
    }

    fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        self.0.run(launch, ORDERS[1])
    }
}

fn with_kernels(recipe: &lockstep_proto::recipe::Recipe) -> DeviceTrainer {
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let fused = Fused::new(Arc::new(OnHost(Host::new().unwrap()))).unwrap();
    let gpu = HostGpu::new().unwrap().with_kernels(fused);
    let mut trainer = DeviceTrainer::new(recipe, data, Box::new(gpu), 1).unwrap();
    begin(&mut trainer);
    trainer
}

/// Five steps with residual joins, strides and a short batch: losses, weights and running statistics.
#[test]
fn batch_norm_by_kernels_trains_as_the_composition_does() {
    let cases = [
        (Precision::Fp32, BatchNorm::Global, Reduction::Fast, Arch::ResnetCifar, 2e-5),
        (Precision::Fp32, BatchNorm::Chunk, Reduction::Canonical, Arch::ResnetCifar, 2e-5),
        (Precision::Fp32, BatchNorm::Local, Reduction::Fast, Arch::Resnet18, 2e-5),
        (Precision::Bf16, BatchNorm::Global, Reduction::Fast, Arch::ResnetCifar, 0.2),
    ];
    for (precision, batch_norm, reduction, arch, bound) in cases {
        let mut recipe = recipe(precision);
        // With seed 0 an activation lies so near to zero that rounding decides about its gradient.
        recipe.train.seed = 1;
        recipe.train.batch_norm = batch_norm;
        recipe.train.reduction = reduction;
        recipe.model.arch = arch;
        recipe.model.width = 8;
        let (mut composed, mut fused) = (on_host(&recipe), with_kernels(&recipe));
        for step in 1..=5 {
            let mut plan = plan(step, if step == 3 { 29 } else { 32 }, &[4]);
            plan.lr = 0.01;
            let (want, have) =
                (composed.step(Generation(1), &plan).unwrap(), fused.step(Generation(1), &plan).unwrap());
            let off = (want.loss - have.loss).abs() / want.loss;
            assert!(off <= bound, "{precision:?} {batch_norm:?} {step}: {} against {}", have.loss, want.loss);
        }
        let off = distance(&composed.tensors().0, &fused.tensors().0);
        assert!(off <= bound, "{precision:?} {batch_norm:?}: weights and statistics differ by {off:e}");
        let (want, have) = (composed.evaluate(Step(5)).unwrap(), fused.evaluate(Step(5)).unwrap());
        assert!((want.loss - have.loss).abs() <= bound * want.loss, "evaluation");
    }
}

/// fp64 has no kernels for BatchNorm: the composition takes over. Images come from the device's own copy of the set all the
/// same, augmented there: the same bits.
#[test]
fn what_kernels_do_not_know_is_composed_and_images_of_the_device_are_the_loaders() {
    let recipe = recipe(Precision::Fp64);
    let (mut composed, mut fused) = (on_host(&recipe), with_kernels(&recipe));
    for step in 1..=3 {
        let plan = plan(step, if step == 2 { 29 } else { 32 }, &[4]);
        let (want, have) = (composed.step(Generation(1), &plan).unwrap(), fused.step(Generation(1), &plan).unwrap());
        assert_eq!((want.loss, want.digest), (have.loss, have.digest), "{step}");
    }
    let (want, have) = (composed.evaluate(Step(3)).unwrap(), fused.evaluate(Step(3)).unwrap());
    assert_eq!((want.loss, want.error), (have.loss, have.error));
}

/// A grid over no rows, and memory that is none.
#[test]
fn a_rank_without_samples_takes_part_with_kernels_too() {
    let mut recipe = recipe(Precision::Fp32);
    recipe.train.seed = 1;
    recipe.model.width = 8;
    let course = |mut device: DeviceTrainer, collective: Arc<dyn Collective>, shards: &[u32]| {
        device.join(collective);
        let mut plan = plan(1, 32, shards);
        plan.lr = 0.01;
        let loss = device.step(Generation(1), &plan).unwrap().loss;
        (loss, device.tensors().0)
    };
    let want = course(on_host(&recipe), Arc::new(Solo::new()), &[4]);
    for (loss, model) in mesh::ranks(2, |collective| course(with_kernels(&recipe), collective, &[4, 0])) {
        assert!((loss - want.0).abs() <= 2e-5 * want.0, "{loss} against {}", want.0);
        let off = distance(&want.1, &model);
        assert!(off <= 2e-5, "weights and statistics differ by {off:e}");
    }
}

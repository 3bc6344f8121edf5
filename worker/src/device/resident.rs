//! A data set that lies on the device as bytes: the host sends which samples and what happens to them, and kernels crop,
//! flip and normalise.

use lockstep_cuda::{DataSet, Draw, Fused};
use lockstep_data::{Chosen, InMemory, Split};
use lockstep_torch::{TorchError, copy_later, write};
use tch::{Device, Kind, Tensor};

use super::body::TARGET;
use super::gpu::{Event, Gpu, GpuError};

/// See the module.
pub struct Resident {
    fused: Fused,
    train: DataSet,
    test: DataSet,
}

/// Where a choice waits on the host until the device has copied it, and where it goes.
pub struct Staged {
    /// Which.
    pub slot: u32,
    /// Behind the last copy.
    pub read: Option<Event>,
    host: [Tensor; 3],
    device: [Tensor; 2],
}

impl Resident {
    /// Copies the set to where `gpu` has its tensors.
    ///
    /// # Errors
    /// No memory.
    pub fn new(set: &InMemory, fused: Fused, place: Device) -> Result<Self, TorchError> {
        let [h, w, c] = set.samples(Split::Train).shape().map(|side| side as i64);
        let numbers = |values: &[f32]| Ok::<_, TorchError>(Tensor::f_from_slice(values)?.f_to_device(place)?);
        let (offset, scale) = (numbers(set.normalizer().offset())?, numbers(set.normalizer().scale())?);
        let of = |split| -> Result<DataSet, TorchError> {
            let samples = set.samples(split);
            let labels: Vec<i32> = (0..samples.len()).map(|sample| samples.label(sample) as i32).collect();
            let images = Tensor::f_from_slice(samples.pixels())?.f_view([samples.len() as i64, h, w, c])?;
            Ok(DataSet {
                images: images.f_to_device(place)?,
                labels: Tensor::f_from_slice(&labels)?.f_to_device(place)?,
                offset: offset.shallow_clone(),
                scale: scale.shallow_clone(),
            })
        };
        Ok(Self { train: of(Split::Train)?, test: of(Split::Test)?, fused })
    }

    /// Its tensors.
    pub fn tensors(&self) -> [&Tensor; 2] {
        [&self.train.images, &self.test.images]
    }

    /// Room for a choice of `n`.
    ///
    /// # Errors
    /// No memory.
    pub fn room(gpu: &dyn Gpu, n: usize, slot: u32) -> Result<Staged, GpuError> {
        let bytes = n * Draw::BYTES as usize;
        let host = [
            gpu.host_room(n, Kind::Int64)?,
            gpu.host_room(bytes, Kind::Uint8)?,
            gpu.host_room(n * TARGET as usize, Kind::Double)?.f_view([n as i64, TARGET]).map_err(TorchError::from)?,
        ];
        let on_device = |of: &Tensor| Tensor::f_zeros(of.size().as_slice(), (of.kind(), gpu.device()));
        let device = [on_device(&host[0]), on_device(&host[1])];
        let [samples, draws] = device;
        Ok(Staged {
            slot,
            read: None,
            host,
            device: [samples.map_err(TorchError::from)?, draws.map_err(TorchError::from)?],
        })
    }

    /// Enqueues the images of a choice, into `images` (f32 `[n, h, w, c]`) and `targets` (f64 `[n, 3]`).
    ///
    /// # Errors
    /// What the device says.
    pub fn take(
        &self,
        split: Split,
        chosen: &Chosen,
        staged: &mut Staged,
        (images, targets): (&Tensor, &mut Tensor),
    ) -> Result<(), TorchError> {
        let draws = chosen
            .augmentations
            .iter()
            .flat_map(|a| Draw { down: a.down as i16, right: a.right as i16, flip: a.flip }.to_bytes());
        let told: Vec<f64> = chosen.labels.iter().flat_map(|label| [*label as f64, *label as f64, 1.0]).collect();
        let [samples_host, draws_host, targets_host] = &mut staged.host;
        write(samples_host, &chosen.samples)?;
        lockstep_torch::write_bytes(draws_host, &draws.collect::<Vec<u8>>())?;
        write(targets_host, &told)?;
        let [samples, draws] = &mut staged.device;
        copy_later(samples, samples_host)?;
        copy_later(draws, draws_host)?;
        copy_later(targets, targets_host)?;
        let data = if split == Split::Train { &self.train } else { &self.test };
        self.fused.augment(data, (samples, draws), images)
    }
}

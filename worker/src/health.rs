//! How the GPUs of this process are: what `nvidia-smi` shows, by the same library.

use std::path::Path;

use lockstep_nccl::Driver;
use lockstep_proto::message::GpuHealth;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

/// Looks at GPUs. Where there are none, or the library is missing, it sees nothing.
#[derive(Debug, Default)]
pub struct Health(Option<Watched>);

#[derive(Debug)]
struct Watched {
    nvml: Nvml,
    /// Name, and where it is plugged in.
    gpus: Vec<(String, String)>,
}

impl Health {
    /// For the GPUs among these devices.
    pub fn of(devices: &[String]) -> Self {
        let ordinals: Vec<u32> = devices.iter().filter_map(|name| name.strip_prefix("cuda:")?.parse().ok()).collect();
        if ordinals.is_empty() {
            return Self::default();
        }
        let watched = Nvml::init().map_err(|error| error.to_string()).and_then(|nvml| {
            let driver = Driver::open(Path::new("libcuda.so.1")).map_err(|error| error.to_string())?;
            let of = |ordinal: &u32| {
                let about = driver.describe(*ordinal).map_err(|error| error.to_string())?;
                Ok((format!("cuda:{ordinal}"), about.pci_bus))
            };
            Ok(Watched { gpus: ordinals.iter().map(of).collect::<Result<_, String>>()?, nvml })
        });
        if let Err(error) = &watched {
            tracing::info!("utilization, memory and temperature of GPUs are not reported: {error}");
        }
        Self(watched.ok())
    }

    /// As they are now. One that does not answer is left out.
    pub fn look(&self) -> Vec<GpuHealth> {
        let Some(Watched { nvml, gpus }) = &self.0 else { return Vec::new() };
        gpus.iter().filter_map(|(name, bus)| look(nvml, name, bus).ok()).collect()
    }
}

fn look(nvml: &Nvml, name: &str, bus: &str) -> Result<GpuHealth, NvmlError> {
    let gpu = nvml.device_by_pci_bus_id(bus)?;
    let memory = gpu.memory_info()?;
    Ok(GpuHealth {
        device: name.to_owned(),
        utilization_percent: gpu.utilization_rates()?.gpu,
        memory_used: memory.used,
        memory_total: memory.total,
        temperature_c: gpu.temperature(TemperatureSensor::Gpu)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_gpu_is_nothing_is_seen() {
        assert!(Health::of(&["cpu".into()]).look().is_empty());
        // Without a driver it says so, once, and sees nothing; with one there may be a device 99 nowhere.
        assert!(Health::of(&["cuda:99".into()]).look().is_empty());
    }
}

//! Compiles the CUDA kernels and their launch plans, under the feature `cuda` only.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda::build();
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::env;
    use std::fmt::Write;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// Machine code for these architectures, and PTX of the first for all later ones. LAVA_CUDA_ARCHS chooses others.
    const ARCHS: &str = "80,86,89,90a,100";

    pub fn build() {
        // Not the whole folder: its tests are not part of this.
        for entry in std::fs::read_dir("cuda").unwrap().map(|entry| entry.unwrap().path()) {
            if entry
                .extension()
                .is_some_and(|ending| ["cu", "cuh", "h", "c"].iter().any(|known| ending == *known))
            {
                println!("cargo:rerun-if-changed={}", entry.display());
            }
        }
        for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "LAVA_REQUIRE_CUDA", "LAVA_CUDA_ARCHS"] {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        cc::Build::new().file("cuda/plan.c").include("cuda").std("c11").compile("lava_plan");

        let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
        let kernels = match nvcc() {
            Some(nvcc) => compile(&nvcc, &out),
            None if env::var_os("LAVA_REQUIRE_CUDA").is_some_and(|v| v != "0") => panic!(
                "LAVA_REQUIRE_CUDA is set, but there is no nvcc: neither as $NVCC, nor in $CUDA_HOME/bin, $CUDA_PATH/bin, $PATH or \
                 target/cuda-toolkit. Install CUDA, or its compiler alone: \
                 python3 -m pip install --no-deps --target target/cuda-toolkit -r cuda/requirements.txt"
            ),
            None => {
                println!(
                    "cargo:warning=no nvcc: this build has no CUDA kernels, and lava_cuda_init returns LAVA_ERR_UNSUPPORTED"
                );
                Vec::new()
            }
        };
        let mut text = format!("static KERNELS: [&Aligned<[u8]>; {}] = [", kernels.len());
        for file in kernels {
            write!(text, "&Aligned(*include_bytes!({file:?})), ").unwrap();
        }
        std::fs::write(out.join("kernels.rs"), text + "];\n").unwrap();
    }

    /// The compiler: one that is named comes first, one that happens to be installed last. An empty NVCC means none.
    fn nvcc() -> Option<PathBuf> {
        if let Some(nvcc) = env::var_os("NVCC") {
            return (!nvcc.is_empty()).then(|| nvcc.into());
        }
        let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
        let mut folders: Vec<_> = homes.map(|home| PathBuf::from(home).join("bin")).collect();
        folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        folders.push("/usr/local/cuda/bin".into());
        // The wheels of cuda/requirements.txt.
        folders.push(manifest.join("target/cuda-toolkit/nvidia/cu13/bin"));
        folders.into_iter().map(|folder| folder.join("nvcc")).find(|path| path.is_file())
    }

    /// One fatbin for each .cu, and their paths.
    fn compile(nvcc: &Path, out: &Path) -> Vec<PathBuf> {
        let archs = env::var("LAVA_CUDA_ARCHS").unwrap_or(ARCHS.into());
        let archs: Vec<_> = archs.split(',').map(str::trim).filter(|arch| !arch.is_empty()).collect();
        let mut sources: Vec<_> =
            std::fs::read_dir("cuda").unwrap().map(|entry| entry.unwrap().path()).collect();
        sources.retain(|path| path.extension().is_some_and(|ending| ending == "cu"));
        sources.sort();
        let fatbin = |source: &PathBuf| {
            let to = out.join(source.file_name().unwrap()).with_extension("fatbin");
            let mut command = Command::new(nvcc);
            command.args(["-std=c++17", "-O3", "-fatbin", "-o"]).arg(&to).arg(source);
            // Options that the source itself asks for.
            let text = std::fs::read_to_string(source).unwrap();
            command.args(text.lines().filter_map(|line| line.strip_prefix("// nvcc: ")));
            command.args(["--threads", &env::var("NUM_JOBS").unwrap_or("1".into())]);
            for (i, arch) in archs.iter().enumerate() {
                let code = if i == 0 { format!("[sm_{arch},compute_{arch}]") } else { format!("sm_{arch}") };
                command.arg("-gencode").arg(format!("arch=compute_{arch},code={code}"));
            }
            match command.output() {
                Ok(output) if output.status.success() => to,
                Ok(output) => {
                    panic!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr))
                }
                Err(e) => panic!("{command:?}: {e}"),
            }
        };
        sources.iter().map(fatbin).collect()
    }
}

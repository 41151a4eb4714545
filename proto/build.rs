//! Compiles the `.proto` files with a compiler that is itself a crate, so that no machine needs protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["haulage/v1/haulage.proto", "haulage/v1/cluster.proto"];
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("haulage.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}

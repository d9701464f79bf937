//! Writes those inputs of the fuzz targets anew that the project's own code makes: `corpus`.

fn main() {
    testkit::fuzz::write_seeds();
}

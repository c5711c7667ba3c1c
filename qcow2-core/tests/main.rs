//! The library through its face: what requests read and leave behind, what they cost, and what they refuse. One program, because what is
//! generic over the storage would be compiled for each.

mod aligned;
mod backing;
mod check;
mod compressed;
mod cost;
mod damage;
mod data_file;
mod draws;
mod encryption;
mod examples;
mod grow;
mod heap;
mod image;
mod layers;
mod limited;
mod passphrases;
mod preallocate;
mod retry;
mod separate;
mod shown;
mod shrink;
mod sparse;
mod subclusters;
mod tables;
mod version_2;
mod write_compressed;

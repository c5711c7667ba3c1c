//! Which passphrases open an image: one more, one less, in every slot, and never the last one gone.

use qcow2_core::blocking::{Image, check, create, create_encrypted};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{
    CreateOptions, Encryption, ErrorKind, IoError, OpenError, OpenOptions, Passphrase, Repair,
};

use crate::aligned::Aligned;
use crate::draws::{draws, random};
use crate::shown::Shown;

fn passphrase(number: usize) -> Passphrase {
    Passphrase::new(format!("passphrase {number}"))
}

fn encrypted<S: Shown>(encryption: &Encryption) -> S {
    let storage = S::of(Vec::new());
    let options = CreateOptions::new(1 << 20);
    create_encrypted(&storage, None, &options, encryption, None).expect("there is room");
    storage
}

fn luks<S: Shown>() -> S {
    encrypted(&Encryption::luks(&passphrase(0), 1, &mut random(1)))
}

fn open<S: Shown>(storage: &S, number: usize) -> Result<Image<S>, OpenError> {
    let options = OpenOptions::new();
    Image::open_encrypted(storage.clone(), &passphrase(number), None, None, options)
}

/// Method: passphrases come and go, one of them several times over, beside a set of those that open the image.
fn come_and_go<S: Shown>(seed: u64) {
    const NUMBERS: usize = 4;
    let storage: S = luks();
    let mut random = random(seed);
    let mut draw = draws(seed);
    let mut slots = vec![vec![0]];
    slots.resize(NUMBERS, Vec::new());
    for step in 0..16 {
        let known = (0..NUMBERS).cycle().skip(draw(NUMBERS)).find(|&one| !slots[one].is_empty());
        let known = known.expect("one always opens it");
        let image = open(&storage, known).expect("it opens it");
        let other = (known + 1 + draw(NUMBERS - 1)) % NUMBERS;
        if draw(2) == 0 {
            image.write(0, &[step; 1024]).expect("there is room");
        }
        let taken: Vec<usize> = slots.concat();
        if draw(8) < 5 {
            let added =
                image.add_passphrase(&passphrase(known), &passphrase(other), 1, &mut random);
            match (0..8).find(|slot| !taken.contains(slot)) {
                Some(free) => {
                    assert_eq!(added.expect("there is room"), free, "seed {seed}, step {step}");
                    slots[other].push(free);
                }
                None => {
                    let error = added.expect_err("there is no room");
                    assert!(error.to_string().contains("eight"), "{error}");
                }
            }
        } else {
            let removed = image.remove_passphrase(&passphrase(known), &passphrase(other));
            assert_eq!(removed.expect("nothing fails"), slots[other].len());
            slots[other].clear();
        }
        // Durable already: what has not been flushed is as if it had not been.
        drop(image);
        for (number, slots) in slots.iter().enumerate() {
            match open(&storage, number) {
                Ok(_) => assert!(!slots.is_empty(), "seed {seed}, step {step}: {number} opens it"),
                Err(OpenError::WrongPassphrase) => {
                    assert!(slots.is_empty(), "seed {seed}, step {step}: {number} is lost");
                }
                Err(error) => panic!("seed {seed}, step {step}: {error}"),
            }
        }
    }
    let report = check(&storage, Repair::None).expect("it is an image");
    assert!(report.is_consistent() && report.leaks == 0, "{report:?}");
}

#[test]
#[cfg_attr(not(turn = "0"), ignore = "its turn is at another commit; CI=1 runs all")]
fn passphrases_come_and_go() {
    for seed in 0..3 {
        come_and_go::<MemoryStorage>(seed);
        come_and_go::<Aligned>(seed);
    }
}

/// Goal: whoever has the file of before, and so its encryption header, opens nothing with a passphrase that was removed.
#[test]
fn what_was_removed_is_gone() {
    let storage: MemoryStorage = luks();
    let image = open(&storage, 0).expect("it opens it");
    let slot = image.add_passphrase(&passphrase(0), &passphrase(1), 1, &mut random(2));
    assert_eq!(slot.expect("there is room"), 1);
    let with = storage.to_vec();
    let removed = image.remove_passphrase(&passphrase(0), &passphrase(1));
    assert_eq!(removed.expect("nothing fails"), 1);
    drop(image);
    let at = with.windows(6).position(|bytes| bytes == b"LUKS\xba\xbe").expect("it is encrypted");
    // Its fields as they were: the slot is on again.
    storage.with(|bytes| bytes[at..at + 592].copy_from_slice(&with[at..at + 592]));
    assert!(matches!(open(&storage, 1), Err(OpenError::WrongPassphrase)));
    open(&storage, 0).expect("it opens it");
    // Everything else is as it was.
    let without = storage.to_vec();
    // Key material begins at sectors that are multiples of 8.
    let material = at + 4096 + 504 * 512;
    assert!(with[..material] == without[..material]);
    assert!(without[material..material + 256_000].iter().all(|&byte| byte == 0));
    assert!(with[material + 256_000..] == without[material + 256_000..]);
}

#[test]
fn what_would_lose_the_image_is_refused() {
    let storage: MemoryStorage = luks();
    let image = open(&storage, 0).expect("it opens it");
    let one = [0, 1, 2].map(passphrase);
    image.add_passphrase(&one[0], &one[1], 1, &mut random(2)).expect("there is room");
    let before = storage.to_vec();
    let refused = |error: IoError, part: &str| {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let kept = image.remove_passphrase(&one[0], &one[0]).expect_err("it is the one to be kept");
    refused(kept, "to be kept");
    let kept = image.remove_passphrase(&one[2], &one[0]).expect_err("the other opens nothing");
    refused(kept, "does not open");
    let known = image.add_passphrase(&one[2], &one[2], 1, &mut random(3));
    refused(known.expect_err("it opens nothing"), "does not open");
    drop(image);
    assert!(storage.to_vec() == before, "nothing was written");

    let options = OpenOptions::read_only();
    let image = Image::open_encrypted(storage.clone(), &one[0], None, None, options);
    let image = image.expect("it opens it");
    let added = image.add_passphrase(&one[0], &one[2], 1, &mut random(3));
    assert!(matches!(added, Err(IoError::ReadOnly)));
    let removed = image.remove_passphrase(&one[0], &one[1]);
    assert!(matches!(removed, Err(IoError::ReadOnly)));

    let old: MemoryStorage = encrypted(&Encryption::aes());
    let image = open(&old, 0).expect("any opens it");
    let added = image.add_passphrase(&one[0], &one[1], 1, &mut random(3));
    refused(added.expect_err("its key is the passphrase"), "not encrypted with LUKS");
    let plain = MemoryStorage::default();
    create(&plain, &CreateOptions::new(1 << 20)).expect("there is room");
    let image = Image::open(plain, OpenOptions::new()).expect("in order");
    let removed = image.remove_passphrase(&one[0], &one[1]);
    refused(removed.expect_err("it has none"), "not encrypted with LUKS");
}

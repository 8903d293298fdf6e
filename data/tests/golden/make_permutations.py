"""Prints the orders that src/shuffle.rs must give, from OpenSSL's ChaCha20 keystream."""

import struct
import subprocess


def keystream(seed: int, epoch: int, size: int) -> bytes:
    key = struct.pack("<Q", seed) + b"retie: order of the rows"
    iv = struct.pack("<QQ", 0, epoch)  # block counter, stream number
    command = ["openssl", "enc", "-chacha20", "-K", key.hex(), "-iv", iv.hex()]
    return subprocess.run(command, input=bytes(size), stdout=subprocess.PIPE, check=True).stdout


def permutation(num_rows: int, seed: int, epoch: int) -> list[int]:
    words = iter(struct.unpack("<1024Q", keystream(seed, epoch, 8192)))
    order = list(range(num_rows))
    for last in range(num_rows - 1, 0, -1):
        bound = last + 1
        while True:
            product = next(words) * bound
            if product % 2**64 >= 2**64 % bound:
                break
        other = product >> 64
        order[last], order[other] = order[other], order[last]
    return order


for seed, epoch in [(0, 0), (42, 0), (42, 7)]:
    print(f"    const GOLDEN_{seed}_{epoch}: [usize; 12] = {permutation(12, seed, epoch)};")

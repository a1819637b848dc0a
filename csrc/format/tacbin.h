// Layout of a .tacbin, all little-endian; docs/format.md is the same on one page.
//
//   0   magic "TACBIN\r\n"
//   8   u32 format version          12  u32 header bytes (64)
//   16  u64 checksum of every byte from 24 to the end (checksum() below)
//   24  u64 file bytes              32  u64 structure bytes
//   40  u64 blob section offset     48  16 zero bytes
//   64  structure: tensors, ops, inputs, outputs, metadata; no gaps
//       zero padding to a multiple of 64 = blob section offset
//       blobs in the order in which the structure names them, each starting at a multiple of 64,
//       zero padding between; the file ends with the last blob. An empty blob takes no place.
//       Offsets are therefore not stored.
//
// Structure, with str = u32 length + bytes, blob = u64 length in bytes:
//
//   u32 n_tensors, each: str name, u8 dtype, u8 is_constant, u8 encoding kind, u8 rank, i32 lo,
//     i32 step, u32 n_levels, i64 dims[rank], and for a constant: blob
//   u32 n_ops, each: u16 code, u16 zero, u32 bytes of what follows, str name, str origin, the
//     fields in fields() order: tensor u32; tensors, ints u32 count + values; int i64; float f32;
//     bool, enum u8; arrays blob
//   u32 n_inputs, each: u32 tensor, u32 channels_first, blob lut
//   u32 n_outputs, each: u32 tensor
//   str metadata
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tac {

inline constexpr char kMagic[8] = {'T', 'A', 'C', 'B', 'I', 'N', '\r', '\n'};
inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::size_t kHeaderBytes = 64;
inline constexpr std::size_t kChecksumOffset = 16;
inline constexpr std::size_t kChecksummedFrom = 24;
inline constexpr std::size_t kFileBytesOffset = 24;
inline constexpr std::size_t kStructureBytesOffset = 32;
inline constexpr std::size_t kBlobSectionOffset = 40;
inline constexpr std::size_t kBlobAlignment = 64;
inline constexpr std::size_t kMaxRank = 8;

// 64-bit checksum: four lanes of 8-byte words, lane = rotl((lane ^ word) * P, 29), the tail as a
// zero-filled word, then the lanes and the length folded the same way. Every step is a bijection of
// the lane, so that any single changed word is always noticed. It guards against accidents, not
// against forgery.
std::uint64_t checksum(std::span<const std::byte> bytes) noexcept;

}  // namespace tac

// bconv_strip_i32 and bconv_strip_bits on tile registers (bconv.h has the contract): signs are
// bytes +-1, so that popcount = (K - dot) / 2 for the K = 32 * words * taps inside the map.
//
// The inputs of a strip are unpacked once, a plane per 64 channels. A tile of A is 16 pixels at one
// tap; what lies outside the map is 0 and adds nothing, so all pixels are alike. Two geometries:
//
//   rows    one plane with borders, a tile within a row:           x[row + ky][col + kx]
//   shifts  where rows are short and their stride is 1: a plane per kx without borders, in which
//           the rows of the map follow each other and tiles go across:  x[kx][row + ky][col]
//
// Weights stay bits, 128 bytes for 64 channels of 16 outputs; they become a tile of B just before
// use, for up to four tiles of pixels:
//
//   C0..C3 += A0..A3 * B       per 64 channels of a tap: 4 products, 5 loads, 16 masks to bytes
//
// which the multiplier takes 64 cycles for; all else runs beside it. 3x3, 256 -> 256 channels at 16
// x 16: 0.071 ms, 2,100 GMAC/s, where vpopcntd takes 0.115 (Intel Xeon, tac_kernel_bench).
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/bconv/bconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::amx {

#include "kernels/tiles.inc"

namespace {

constexpr std::size_t kGroupTiles = 4;
// Tiles of B ahead: stores must have left the store buffer when a tile load wants them.
constexpr std::size_t kAhead = 2;
constexpr std::size_t kRing = 4;
// The first tilestored after more than about 30 products takes a quarter of a microsecond longer
// than others on the one CPU where this was timed; with one every 16 products, of sums that are not
// done yet, none does.
constexpr std::size_t kStoreEvery = 16;
// Words of packed weights per tile of B: bit 4 n + j of the 64-bit row r is channel 4 r + j of
// output n.
constexpr std::size_t kTileWords = 2 * kTileRows;

// Where things lie in the scratch, in bytes.
struct Strip {
  bool shifts;
  std::size_t n_rows;                    // output rows
  std::size_t rows, cols;                // of an unpacked plane
  std::size_t copy, plane;               // sizes
  std::size_t pixel_step;                // between neighbouring outputs of a row
  std::size_t row_step;                  // between output rows
  std::size_t n_planes;                  // of 64 channels
  std::size_t n_products;                // n_planes * taps
  std::size_t segments, segment_pixels;  // runs of pixels that tiles may not leave
  std::size_t segment_tiles, tile_pixels;
  std::size_t at_offsets, at_taps, at_planes, bytes;
};

static Strip strip_of(const BconvParams& p, std::size_t n_rows) {
  Strip s;
  s.n_rows = n_rows;
  s.shifts = p.stride_h == 1 && p.out_w < 13;
  s.rows = (n_rows - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
  s.cols = s.shifts ? p.out_w : (p.out_w - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1;
  s.copy = s.rows * s.cols * kTileRowBytes;
  s.plane = s.copy * (s.shifts ? p.kernel_w : 1);
  s.pixel_step = (s.shifts ? 1 : p.stride_w) * kTileRowBytes;
  s.row_step = p.stride_h * s.cols * kTileRowBytes;
  s.n_planes = local_ceil_div(p.words, 2);
  s.n_products = s.n_planes * p.kernel_h * p.kernel_w;
  s.segments = s.shifts ? 1 : n_rows;
  s.segment_pixels = s.shifts ? n_rows * p.out_w : p.out_w;
  s.segment_tiles = local_ceil_div(s.segment_pixels, kTileRows);
  s.tile_pixels = local_ceil_div(s.segment_pixels, s.segment_tiles);
  s.at_offsets = (kRing + kGroupTiles) * kTileBytes;
  s.at_taps = s.at_offsets + s.n_products * sizeof(std::size_t);
  s.at_planes =
      local_ceil_div(s.at_taps + (n_rows + p.out_w) * sizeof(std::int32_t), kTileRowBytes) *
      kTileRowBytes;
  // The last tile may reach over the end; what it computes there is not looked at.
  s.bytes = s.at_planes + s.n_planes * s.plane + kTileRows * s.pixel_step;
  return s;
}

struct Unpacked {
  std::int8_t* ring;           // kRing tiles of B
  std::int32_t* sums;          // kGroupTiles tiles of C
  const std::size_t* offsets;  // of each product, from a pixel's first tap
  // Bits inside the map of the taps of a row of outputs, and taps of a column.
  const std::int32_t* row_taps;
  const std::int32_t* col_taps;
  const std::int8_t* planes;
};

static inline __m512i signs(__mmask64 bits) {
  return _mm512_mask_blend_epi8(bits, _mm512_set1_epi8(1), _mm512_set1_epi8(-1));
}

static inline __mmask64 load_bits(const std::uint32_t* words) {
  std::uint64_t bits;
  __builtin_memcpy(&bits, words, sizeof bits);
  return bits;
}

// Columns [begin, end) of one row of a copy, from the pixel `x` on, `step` words apart.
static inline void unpack_row(const BconvParams& p, const Strip& s, const std::uint32_t* x,
                              std::size_t step, std::size_t begin, std::size_t end,
                              std::int8_t* to) {
  for (std::size_t plane = 0; plane < s.n_planes; ++plane, to += s.plane) {
    const bool half = 2 * plane + 1 == p.words;
    std::int8_t* pixel = to;
    for (std::size_t col = 0; col < begin; ++col, pixel += kTileRowBytes)
      _mm512_store_si512(pixel, _mm512_setzero_si512());
    const std::uint32_t* from = x + 2 * plane;
    if (half) {
      for (std::size_t col = begin; col < end; ++col, pixel += kTileRowBytes, from += step)
        _mm512_store_si512(pixel, _mm512_maskz_mov_epi8(0xFFFFFFFFU, signs(*from)));
    } else {
      for (std::size_t col = begin; col < end; ++col, pixel += kTileRowBytes, from += step)
        _mm512_store_si512(pixel, signs(load_bits(from)));
    }
    for (std::size_t col = end; col < s.cols; ++col, pixel += kTileRowBytes)
      _mm512_store_si512(pixel, _mm512_setzero_si512());
  }
}

static void unpack_inputs(const BconvParams& p, const Strip& s, const std::uint32_t* input,
                          std::size_t oy_begin, std::int8_t* planes) {
  const std::size_t n_copies = s.shifts ? p.kernel_w : 1;
  const std::size_t stride = s.shifts ? p.stride_w : 1;  // in columns of the map
  const auto iy0 =
      static_cast<std::ptrdiff_t>(oy_begin * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  for (std::size_t copy = 0; copy < n_copies; ++copy) {
    const auto ix0 =
        static_cast<std::ptrdiff_t>(copy * p.dilation_w) - static_cast<std::ptrdiff_t>(p.pad_left);
    // Columns count like taps that lie `stride` apart.
    const LocalTapRange inside =
        local_tap_range(ix0, s.cols, stride, 0, static_cast<std::ptrdiff_t>(p.in_w));
    for (std::size_t row = 0; row < s.rows; ++row) {
      const std::ptrdiff_t iy = iy0 + static_cast<std::ptrdiff_t>(row);
      const bool is_inside =
          iy >= 0 && iy < static_cast<std::ptrdiff_t>(p.in_h) && inside.begin < inside.end;
      const std::uint32_t* x = input;
      if (is_inside) {
        const std::size_t ix =
            static_cast<std::size_t>(ix0 + static_cast<std::ptrdiff_t>(inside.begin * stride));
        x += (static_cast<std::size_t>(iy) * p.in_w + ix) * p.pixel_words;
      }
      unpack_row(p, s, x, stride * p.pixel_words, is_inside ? inside.begin : s.cols,
                 is_inside ? inside.end : s.cols, planes + copy * s.copy + row * s.cols * 64);
    }
  }
}

static inline void unpack_weights(const std::uint32_t* w, std::int8_t* tile) {
#pragma GCC unroll 16
  for (std::size_t row = 0; row < kTileRows; ++row)
    _mm512_store_si512(tile + row * kTileRowBytes, signs(load_bits(w + 2 * row)));
}

// Sums of N tiles of pixels and 16 outputs.
template <int N>
static inline void multiply(const Strip& s, const Unpacked& u,
                            const std::int8_t* const (&pixels)[kGroupTiles],
                            const std::uint32_t* w) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::size_t k = 0; k < kAhead; ++k)
    unpack_weights(w + k * kTileWords, u.ring + k * kTileBytes);
  for (std::size_t k = 0, end; k < s.n_products;) {
    for (end = local_min(k + kStoreEvery, s.n_products); k < end; ++k) {
      unpack_weights(w + (k + kAhead) * kTileWords, u.ring + (k + kAhead) % kRing * kTileBytes);
      local_before_tile_loads();
      const std::size_t offset = u.offsets[k];
      _tile_loadd(6, u.ring + k % kRing * kTileBytes, kTileRowBytes);
      _tile_loadd(4, pixels[0] + offset, s.pixel_step);
      _tile_dpbssd(0, 4, 6);
      if constexpr (N > 1) {
        _tile_loadd(5, pixels[1] + offset, s.pixel_step);
        _tile_dpbssd(1, 5, 6);
      }
      if constexpr (N > 2) {
        _tile_loadd(4, pixels[2] + offset, s.pixel_step);
        _tile_dpbssd(2, 4, 6);
      }
      if constexpr (N > 3) {
        _tile_loadd(5, pixels[3] + offset, s.pixel_step);
        _tile_dpbssd(3, 5, 6);
      }
    }
    _tile_stored(0, u.sums, kTileRowBytes);
  }
  if constexpr (N > 1) _tile_stored(1, u.sums + kTileBytes / 4, kTileRowBytes);
  if constexpr (N > 2) _tile_stored(2, u.sums + 2 * kTileBytes / 4, kTileRowBytes);
  if constexpr (N > 3) _tile_stored(3, u.sums + 3 * kTileBytes / 4, kTileRowBytes);
}

// One output pixel of a group of tiles.
struct Pixel {
  std::size_t sums;      // index of its sums
  std::size_t out;       // row * out_w + column in the strip
  std::size_t base_row;  // index of its class in `base`
  std::int32_t inside;   // K
};
struct Group {
  std::size_t n_tiles, n_pixels;
  const std::int8_t* starts[kGroupTiles];
  Pixel pixels[kGroupTiles * kTileRows];
};

static std::int32_t taps_inside(std::size_t o, std::size_t stride, std::size_t pad,
                                std::size_t n_taps, std::size_t dilation, std::size_t size) {
  const LocalTapRange range =
      local_tap_range(static_cast<std::ptrdiff_t>(o * stride) - static_cast<std::ptrdiff_t>(pad),
                      n_taps, dilation, 0, static_cast<std::ptrdiff_t>(size));
  return static_cast<std::int32_t>(range.end - range.begin);
}

static void make_group(const BconvParams& p, const Strip& s, const Unpacked& u,
                       std::size_t oy_begin, std::size_t tile, std::size_t n_tiles, Group& group) {
  group.n_tiles = n_tiles;
  group.n_pixels = 0;
  for (std::size_t i = 0; i < kGroupTiles; ++i) group.starts[i] = u.planes;
  for (std::size_t i = 0; i < n_tiles; ++i, ++tile) {
    const std::size_t segment = tile / s.segment_tiles;
    const std::size_t first = tile % s.segment_tiles * s.tile_pixels;
    group.starts[i] += segment * s.row_step + first * s.pixel_step;
    std::size_t out = segment * s.segment_pixels + first;
    std::size_t row = out / p.out_w, ox = out % p.out_w;
    const std::size_t n_pixels = local_min(s.tile_pixels, s.segment_pixels - first);
    for (std::size_t j = 0; j < n_pixels; ++j, ++out) {
      group.pixels[group.n_pixels++] = {(i * kTileRows + j) * kBconvBlock, out,
                                        p.row_class[oy_begin + row] + p.col_class[ox],
                                        u.row_taps[row] * u.col_taps[ox]};
      if (++ox == p.out_w) ox = 0, ++row;
    }
  }
}

// One pair of planes. finish(block, pixels, n_pixels) takes the sums of one block.
template <class Finish>
static inline void convolve(const BconvParams& p, const Strip& s, const Unpacked& u,
                            const std::uint32_t* weights, std::size_t oy_begin,
                            std::size_t block_begin, std::size_t block_end, const Finish& finish) {
  const TileConfig config(s.tile_pixels);
  const std::size_t n_tiles = s.segments * s.segment_tiles;
  Group group;
  std::size_t n_groups = local_ceil_div(n_tiles, kGroupTiles);
  for (std::size_t tile = 0, n; n_groups > 0; --n_groups, tile += n) {
    n = local_ceil_div(n_tiles - tile, n_groups);
    make_group(p, s, u, oy_begin, tile, n, group);
    for (std::size_t block = block_begin; block < block_end; ++block) {
      const std::uint32_t* w = weights + block * s.n_products * kTileWords;
      switch (n) {
        case 1: multiply<1>(s, u, group.starts, w); break;
        case 2: multiply<2>(s, u, group.starts, w); break;
        case 3: multiply<3>(s, u, group.starts, w); break;
        default: multiply<4>(s, u, group.starts, w); break;
      }
      finish(block, group.pixels, group.n_pixels);
    }
  }
}

static Unpacked place(const BconvParams& p, const Strip& s, std::size_t oy_begin,
                      std::byte* scratch) {
  Unpacked u;
  u.ring = reinterpret_cast<std::int8_t*>(scratch);
  u.sums = reinterpret_cast<std::int32_t*>(scratch + kRing * kTileBytes);
  auto* offsets = reinterpret_cast<std::size_t*>(scratch + s.at_offsets);
  u.offsets = offsets;
  u.planes = reinterpret_cast<const std::int8_t*>(scratch + s.at_planes);
  for (std::size_t plane = 0; plane < s.n_planes; ++plane) {
    for (std::size_t ky = 0; ky < p.kernel_h; ++ky) {
      for (std::size_t kx = 0; kx < p.kernel_w; ++kx) {
        const std::size_t x = s.shifts ? kx * s.copy : kx * p.dilation_w * kTileRowBytes;
        *offsets++ = plane * s.plane + ky * p.dilation_h * s.cols * kTileRowBytes + x;
      }
    }
  }
  auto* taps = reinterpret_cast<std::int32_t*>(scratch + s.at_taps);
  u.row_taps = taps;
  for (std::size_t oy = oy_begin; oy < oy_begin + s.n_rows; ++oy) {
    *taps++ = taps_inside(oy, p.stride_h, p.pad_top, p.kernel_h, p.dilation_h, p.in_h) *
              static_cast<std::int32_t>(p.words * 32);
  }
  u.col_taps = taps;
  for (std::size_t ox = 0; ox < p.out_w; ++ox)
    *taps++ = taps_inside(ox, p.stride_w, p.pad_left, p.kernel_w, p.dilation_w, p.in_w);
  return u;
}

}  // namespace

std::size_t bconv_strip_pack(const std::uint32_t* rows, std::size_t n_channels, std::size_t n_taps,
                             std::size_t words, std::uint32_t* packed) {
  const std::size_t n_blocks = local_ceil_div(n_channels, kBconvBlock);
  const std::size_t n_planes = local_ceil_div(words, 2);
  // Tiles are unpacked ahead, past the last one.
  const std::size_t n_behind = kAhead * kTileWords;
  const std::size_t size = n_blocks * n_planes * n_taps * kTileWords + n_behind;
  if (packed == nullptr) return size;
  for (std::size_t block = 0; block < n_blocks; ++block) {
    for (std::size_t plane = 0; plane < n_planes; ++plane) {
      for (std::size_t tap = 0; tap < n_taps; ++tap, packed += kTileWords) {
        std::uint64_t tile[kTileRows] = {};
        for (std::size_t n = 0; n < local_min(kBconvBlock, n_channels - block * kBconvBlock); ++n) {
          const std::uint32_t* from =
              rows + ((block * kBconvBlock + n) * n_taps + tap) * words + 2 * plane;
          std::uint64_t bits = *from;
          if (2 * plane + 1 < words) bits |= static_cast<std::uint64_t>(from[1]) << 32U;
          for (std::size_t row = 0; row < kTileRows; ++row)
            tile[row] |= (bits >> (4 * row) & 15U) << (4 * n);
        }
        __builtin_memcpy(packed, tile, sizeof tile);
      }
    }
  }
  for (std::size_t i = 0; i < n_behind; ++i) packed[i] = 0;
  return size;
}

std::size_t bconv_strip_scratch(const BconvParams& params, std::size_t n_rows) {
  return strip_of(params, n_rows).bytes;
}

void bconv_strip_i32(const BconvParams& p, const std::uint32_t* input, std::size_t oy_begin,
                     std::size_t oy_end, std::size_t block_begin, std::size_t block_end,
                     std::byte* scratch, std::int32_t* out, std::size_t out_stride) {
  const Strip s = strip_of(p, oy_end - oy_begin);
  const Unpacked u = place(p, s, oy_begin, scratch);
  const std::size_t n_pairs = p.n_in_planes * p.n_w_planes;
  for (std::size_t pair = 0; pair < n_pairs; ++pair) {
    if (pair % p.n_w_planes == 0) {
      unpack_inputs(p, s, input + pair / p.n_w_planes * p.in_plane_words, oy_begin,
                    reinterpret_cast<std::int8_t*>(scratch + s.at_planes));
    }
    const __m512i coef = _mm512_set1_epi32(p.coef[pair]);
    const __m128i shift = _mm_cvtsi32_si128(pair + 1 == n_pairs ? p.shift : 0);
    // base - 2 * coef * popcount = base - coef * (K - dot)
    const auto finish = [&](std::size_t block, const Pixel* pixels,
                            std::size_t n_pixels) __attribute__((always_inline)) {
      for (std::size_t i = 0; i < n_pixels; ++i) {
        const Pixel& pixel = pixels[i];
        std::int32_t* y = out + pixel.out * out_stride + (block - block_begin) * kBconvBlock;
        const std::int32_t* previous =
            pair == 0 ? p.base + (pixel.base_row * p.n_blocks + block) * kBconvBlock : y;
        const __m512i twice = _mm512_sub_epi32(_mm512_set1_epi32(pixel.inside),
                                               _mm512_load_si512(u.sums + pixel.sums));
        const __m512i sum =
            _mm512_sub_epi32(_mm512_load_si512(previous), _mm512_mullo_epi32(twice, coef));
        _mm512_store_si512(y, _mm512_sra_epi32(sum, shift));
      }
    };
    convolve(p, s, u, p.weights + pair % p.n_w_planes * p.w_plane_words, oy_begin, block_begin,
             block_end, finish);
  }
}

void bconv_strip_bits(const BconvParams& p, const std::uint32_t* flip, const std::uint32_t* input,
                      std::size_t oy_begin, std::size_t oy_end, std::size_t block_begin,
                      std::size_t block_end, std::byte* scratch, std::uint32_t* out,
                      std::size_t out_stride) {
  TAC_DCHECK(block_begin % 2 == 0 && p.n_in_planes == 1 && p.n_w_planes == 1);
  const Strip s = strip_of(p, oy_end - oy_begin);
  const Unpacked u = place(p, s, oy_begin, scratch);
  unpack_inputs(p, s, input, oy_begin, reinterpret_cast<std::int8_t*>(scratch + s.at_planes));
  const std::size_t limit_row = local_ceil_div(p.n_blocks, 2) * 2 * kBconvBlock;
  // popcount <= limit, where K - dot = 2 * popcount
  const auto finish = [&](std::size_t block, const Pixel* pixels, std::size_t n_pixels) {
    // A word of two blocks is written in halves, the lower one first (little endian).
    auto* halves = reinterpret_cast<unsigned char*>(out) + (block - block_begin) * 2;
    const auto inverted = static_cast<std::uint16_t>(flip[block / 2] >> block % 2 * 16);
    const bool lone = block + 1 == block_end && block % 2 == 0;
    for (std::size_t i = 0; i < n_pixels; ++i) {
      const Pixel& pixel = pixels[i];
      const std::int32_t* limit = p.base + pixel.base_row * limit_row + block * kBconvBlock;
      const __m512i twice =
          _mm512_sub_epi32(_mm512_set1_epi32(pixel.inside), _mm512_load_si512(u.sums + pixel.sums));
      const __mmask16 bits =
          _mm512_cmple_epi32_mask(_mm512_srai_epi32(twice, 1), _mm512_load_si512(limit));
      const auto half = static_cast<std::uint16_t>(bits ^ inverted);
      __builtin_memcpy(halves + pixel.out * out_stride * 4, &half, 2);
    }
    if (lone) {
      const auto upper = static_cast<std::uint16_t>(flip[block / 2] >> 16);
      for (std::size_t i = 0; i < n_pixels; ++i)
        __builtin_memcpy(halves + pixels[i].out * out_stride * 4 + 2, &upper, 2);
    }
  };
  convolve(p, s, u, p.weights, oy_begin, block_begin, block_end, finish);
}

}  // namespace tac::kernels::amx

// The kernels that the scalar backend has.
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {

constinit const KernelTable table = {
    .bconv_b1_pack = bconv_b1_pack,
    .bconv_b1_i32 = bconv_b1_i32,
    .bconv_b1_bits = bconv_b1_bits,
    .bconv_strip_pack = bconv_strip_pack,
    .bconv_strip_scratch = bconv_strip_scratch,
    .bconv_strip_i32 = bconv_strip_i32,
    .bconv_strip_bits = bconv_strip_bits,
    .quantize_i32_bits = quantize_i32_bits,
    .quantize_f32_bits = quantize_f32_bits,
    .dequantize_bits_f32 = dequantize_bits_f32,
    .bit_pool_bits = bit_pool_bits,
    .codebook_linear_f32 = codebook_linear_f32,
    .max_magnitude_f32 = max_magnitude_f32,
    .round_f32_i16 = round_f32_i16,
    .codebook_linear_i16 = codebook_linear_i16,
    .codebook_linear_i16_sliced = codebook_linear_i16_sliced,
    .codebook_linear_i16_bytes = codebook_linear_i16_bytes,
    .split_i16_u8 = split_i16_u8,
    .codebook_sparse_f32 = codebook_sparse_f32,
    .codebook_sparse_i16 = codebook_sparse_i16,
    .linear_f32 = linear_f32,
    .conv_f32 = conv_f32,
    .conv_i16 = conv_i16,
    .depthwise_f32 = depthwise_f32,
    .pool_f32 = pool_f32,
    .affine_f32 = affine_f32,
    .unary_f32 = unary_f32,
    .binary_f32 = binary_f32,
    .chain_f32 = chain_f32,
    .softmax_f32 = softmax_f32,
    .reduce_rows_f32 = reduce_rows_f32,
    .reduce_columns_f32 = reduce_columns_f32,
};

}  // namespace tac::kernels::scalar

/** Element types of tensors. `f32` is true float32 everywhere: no TF32. */
export type DType = 'f32' | 'bf16' | 'f16' | 'i32'

/** The numbers of `DType` in kernels/include/nexus/dtype.h. */
export const dtypeCode = { f32: 0, bf16: 1, f16: 2, i32: 3 } as const satisfies Record<DType, number>

/** Bytes of one element. */
export const dtypeBytes = { f32: 4, bf16: 2, f16: 2, i32: 4 } as const satisfies Record<DType, number>

export const dtypes: readonly DType[] = ['f32', 'bf16', 'f16', 'i32']

/** What JavaScript hands to a tensor: checked, and named by the addon's numbers. */
import type { TypedArray } from './binding.js'
import { type DType, dtypes } from './dtype.js'
import { checkOneOf, describe } from './options.js'

/** Element data. A Uint16Array holds the raw bits of bf16 or f16. */
export type TensorData = Float32Array | Uint16Array | Int32Array | readonly number[]

/** Data as the addon takes it: `dtype` says what its elements are. */
export interface SourceData {
  readonly array: TypedArray
  readonly dtype: DType
}

/** @throws TypeError, RangeError naming `shape` */
export function checkShape(shape: readonly number[]): { shape: readonly number[]; size: number } {
  if (!Array.isArray(shape)) throw new TypeError(`shape: expected an array of integers, got ${describe(shape)}`)
  let size = 1
  for (const extent of shape) {
    if (!Number.isSafeInteger(extent) || extent < 0) {
      throw new RangeError(`shape: expected integers of at least 0, got ${describe(shape)}`)
    }
    size *= extent
  }
  // Not `>`: 0 times an infinite product is NaN.
  if (!(size <= Number.MAX_SAFE_INTEGER / 8)) throw new RangeError(`shape: ${describe(shape)} is too large`)
  return { shape: Object.freeze([...shape]), size }
}

export const checkDtype = (name: string, dtype: unknown): DType => checkOneOf(name, dtype, dtypes)

function int32s(values: readonly number[]): Int32Array {
  for (const value of values) {
    if ((value | 0) !== value) throw new RangeError(`data: expected 32-bit integers for i32, got ${describe(value)}`)
  }
  return Int32Array.from(values)
}

const kindOf = (data: unknown): 'Float32Array' | 'Uint16Array' | 'Int32Array' | 'number[]' => {
  if (data instanceof Float32Array) return 'Float32Array'
  if (data instanceof Uint16Array) return 'Uint16Array'
  if (data instanceof Int32Array) return 'Int32Array'
  if (Array.isArray(data)) return 'number[]'
  throw new TypeError(`data: expected a Float32Array, Uint16Array, Int32Array or number[], got ${describe(data)}`)
}

/** Native threads read the data: its memory must stay where it is and as large as it is. */
function checkMemory(data: TensorData): void {
  const memory: unknown = Reflect.get(data, 'buffer')
  if (!(memory instanceof ArrayBuffer)) {
    throw new TypeError(`data: expected memory of its own (an ArrayBuffer), got ${describe(memory)}`)
  }
  if (Reflect.get(memory, 'resizable') === true) {
    throw new TypeError('data: expected an ArrayBuffer of fixed length, got a resizable one')
  }
}

/**
 * The data and the dtype of a tensor made from it. `dtype` undefined takes what the data says by itself.
 * @throws TypeError where data and dtype do not belong together; RangeError for a number that is no int32
 */
export function checkData(data: TensorData, dtype: DType | undefined): { source: SourceData; dtype: DType } {
  const kind = kindOf(data)
  if (kind !== 'number[]') checkMemory(data)
  const mismatch = (expected: string): TypeError =>
    new TypeError(`dtype: a ${kind} needs ${expected}, got ${describe(dtype)}`)
  if (data instanceof Uint16Array) {
    if (dtype !== 'bf16' && dtype !== 'f16') throw mismatch("'bf16' or 'f16' (its raw bits)")
    return { source: { array: data, dtype }, dtype }
  }
  if (data instanceof Int32Array) {
    if (dtype !== undefined && dtype !== 'i32') throw mismatch("'i32'")
    return { source: { array: data, dtype: 'i32' }, dtype: 'i32' }
  }
  if (data instanceof Float32Array) {
    if (dtype === 'i32') throw mismatch("'f32', 'bf16' or 'f16'")
    return { source: { array: data, dtype: 'f32' }, dtype: dtype ?? 'f32' }
  }
  for (const value of data) {
    if (typeof value !== 'number') throw new TypeError(`data: expected numbers, got ${describe(value)}`)
  }
  return dtype === 'i32'
    ? { source: { array: int32s(data), dtype }, dtype }
    : { source: { array: Float32Array.from(data), dtype: 'f32' }, dtype: dtype ?? 'f32' }
}

/**
 * What every primitive checks of a tensor it is given: that it is one, its dtype, its device and its shape. The message names
 * the argument, what came and what was expected, so that a wrong call is refused before anything is enqueued.
 */
import { type DeviceName, type DType, describe, isTensor, type Tensor } from '@nexus/native'

/** `null` stands for a size that may be anything. */
export type ShapePattern = readonly (number | null)[]

export interface TensorExpectation {
  readonly dtype?: DType | readonly DType[]
  readonly device?: DeviceName
  /** Sizes, or names for the message where a size is free: `{ shape: [null, 64], names: ['tokens', 'inputDim'] }`. */
  readonly shape?: ShapePattern
  readonly names?: readonly string[]
}

function spell(pattern: ShapePattern, names: readonly string[] | undefined): string {
  return `[${pattern.map((size, i) => size ?? names?.[i] ?? 'any').join(', ')}]`
}

/**
 * @throws TypeError when `value` is not a tensor or has another dtype
 * @throws RangeError when its device or shape is another
 */
export function checkTensor(name: string, value: unknown, expected: TensorExpectation): Tensor {
  if (!isTensor(value)) throw new TypeError(`${name} must be a Tensor, got ${describe(value)}`)
  const { dtype, device, shape, names } = expected
  if (dtype !== undefined) {
    const allowed: readonly DType[] = typeof dtype === 'string' ? [dtype] : dtype
    if (!allowed.includes(value.dtype)) {
      throw new TypeError(`${name} must have dtype ${allowed.join(' or ')}, got ${value.dtype}`)
    }
  }
  if (device !== undefined && value.device !== device) {
    throw new RangeError(`${name} must be on device ${device}, got a tensor on ${value.device}`)
  }
  if (shape !== undefined) {
    const matches =
      value.shape.length === shape.length && shape.every((size, i) => size === null || size === value.shape[i])
    if (!matches) {
      throw new RangeError(`${name} must have shape ${spell(shape, names)}, got [${value.shape.join(', ')}]`)
    }
  }
  return value
}

/** The size of dimension `i`, of a tensor whose rank was checked. */
export function sizeAt(tensor: Tensor, i: number): number {
  const size = tensor.shape[i]
  if (size === undefined) throw new RangeError(`expected a dimension ${i}, got shape [${tensor.shape.join(', ')}]`)
  return size
}

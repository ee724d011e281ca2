/** Oracles of the conversions, in plain arithmetic on bits: rounding to nearest, ties to even. */

const view = new DataView(new ArrayBuffer(4))
const bitsOf = (value: number): number => {
  view.setFloat32(0, value)
  return view.getUint32(0)
}

/** float32 → bfloat16 bits. */
export function toBf16(value: number): number {
  const bits = bitsOf(value)
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff
}

export function fromBf16(bits: number): number {
  view.setUint32(0, bits << 16)
  return view.getFloat32(0)
}

export function fromF16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

/** float32 → float16 bits: exact in float64, so that the rounding is done once. NaN: any. */
export function toF16(value: number): number {
  const sign = bitsOf(value) >>> 31 ? 0x8000 : 0
  const magnitude = Math.abs(value)
  if (Number.isNaN(value)) return sign | 0x7e00
  if (magnitude >= 65520) return sign | 0x7c00
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude === 0 ? 2 ** -24 : magnitude)))
  const step = 2 ** (exponent - 10)
  const units = magnitude / step
  const floor = Math.floor(units)
  const rest = units - floor
  const rounded = (rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor) * step
  // Every float16 of one sign is its bits in ascending order.
  if (rounded === 0) return sign
  const e = Math.max(-14, Math.floor(Math.log2(rounded)))
  return rounded < 2 ** -14 ? sign | (rounded / 2 ** -24) : sign | ((e + 15) << 10) | (rounded / 2 ** (e - 10) - 1024)
}

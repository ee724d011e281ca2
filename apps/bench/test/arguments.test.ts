import { expect, test } from 'vitest'
import { checkedDevice, checkKnown, number, numbers, oneOf, outputArgs, seed } from '../src/commands/arguments.js'

test('a mistyped option is refused by its name, with those that there are', () => {
  expect(() => checkKnown(['--outt=x'], outputArgs)).toThrow('--outt: no such option; there are --out, --json')
  expect(() => checkKnown(['--out', '-3', '--json', '--help', '--', '--anything'], outputArgs)).not.toThrow()
})

test('numbers are positive, whole unless said otherwise, and seeds may be 0', () => {
  expect(number('steps', '12')).toBe(12)
  expect(number('seconds', '0.5', true)).toBe(0.5)
  expect(numbers('tokens', '1,64')).toEqual([1, 64])
  expect(seed('seed', '0')).toBe(0)
  for (const wrong of ['', '0', '-1', '1.5', 'many', 'Infinity']) {
    expect(() => number('steps', wrong)).toThrow(`--steps: '${wrong}' is not a positive integer`)
  }
  expect(() => number('seconds', 'Infinity', true)).toThrow(/--seconds/)
  expect(() => numbers('tokens', '1,,2')).toThrow(/--tokens/)
  expect(() => seed('seed', '4294967296')).toThrow(/--seed/)
})

test('words are one of those that there are', () => {
  expect(oneOf('drift', 'bursts', ['gradual', 'bursts'])).toBe('bursts')
  expect(() => oneOf('drift', 'x', ['gradual', 'bursts'])).toThrow("--drift: 'x' is not one of gradual, bursts")
  expect(checkedDevice('cpu')).toBe('cpu')
  expect(() => checkedDevice('tpu')).toThrow(/--device: 'tpu'/)
})

import { describe, expect, test } from 'vitest'
import { parseCommand } from '../src/arguments.js'
import { UsageError } from '../src/exit.js'
import { distance, nearest } from '../src/nearest.js'

const defaults = { device: 'auto', seed: 0, batches: [64, 128, 256, 512], runs: null, checkpoint: null, json: false }

describe('what is understood', () => {
  test.each([
    [[], { name: 'demo', options: defaults }],
    [['--json', '--device', 'cpu'], { name: 'demo', options: { ...defaults, json: true, device: 'cpu' } }],
    [['--device=cuda:07'], { name: 'demo', options: { ...defaults, device: 'cuda:7' } }],
    [
      ['--batches', '1, 8', '--runs=3', '--seed', '4294967295'],
      { name: 'demo', options: { ...defaults, batches: [1, 8], runs: 3, seed: 4294967295 } },
    ],
    [['--checkpoint', 'here'], { name: 'demo', options: { ...defaults, checkpoint: 'here' } }],
    [['doctor'], { name: 'doctor', json: false }],
    [['doctor', '--json'], { name: 'doctor', json: true }],
    [['--help'], { name: 'help', topic: 'demo' }],
    [['-h'], { name: 'help', topic: 'demo' }],
    [['help'], { name: 'help', topic: 'demo' }],
    [['doctor', '--help'], { name: 'help', topic: 'doctor' }],
    [['--version'], { name: 'version' }],
    [['-V'], { name: 'version' }],
  ])('%j', (words, expected) => {
    expect(parseCommand(words)).toEqual(expected)
  })
})

describe('what is refused, by name', () => {
  test.each([
    [['--devise', 'cpu'], "unknown option '--devise'; did you mean '--device'?"],
    [['--dev=cpu'], "unknown option '--dev'; did you mean '--device'?"],
    [['--no-json'], "unknown option '--no-json'; did you mean '--json'?"],
    [['-x'], "unknown option '-x'"],
    [['doctr'], "unexpected argument 'doctr'; did you mean 'doctor'?"],
    [['doctor', 'now'], "unexpected argument 'now'"],
    [['doctor', '--seed', '1'], "unknown option '--seed'"],
    [['--seed'], "option '--seed' needs a value"],
    [['--seed', '--json'], "option '--seed' needs a value"],
    [['--seed='], "option '--seed' needs a value"],
    [['--json=yes'], "option '--json' takes no value, got 'yes'"],
    [['--seed', '1', '--seed=2'], "option '--seed' was given twice"],
    [['--seed', '-1'], "--seed: expected an integer from 0 to 4294967295, got '-1'"],
    [['--seed', '1.5'], "--seed: expected an integer from 0 to 4294967295, got '1.5'"],
    [['--seed', '4294967296'], "--seed: expected an integer from 0 to 4294967295, got '4294967296'"],
    [['--runs', '0'], "--runs: expected an integer from 1 to 1000, got '0'"],
    [['--runs', 'ten'], "--runs: expected an integer from 1 to 1000, got 'ten'"],
    [['--batches', '64,,128'], "--batches: expected an integer from 1 to 65536, got ''"],
    [['--batches', '1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17'], '--batches: expected at most 16 sizes, got 17'],
    [['--device', 'gpu'], "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"],
    [['--device', 'cuda:x'], "--device: expected auto, cpu, cuda or cuda:N, got 'cuda:x'"],
  ])('%j', (words, message) => {
    expect(() => parseCommand(words)).toThrow(UsageError)
    expect(() => parseCommand(words)).toThrow(message)
  })
})

test('the nearest word', () => {
  expect(distance('', 'abc')).toBe(3)
  expect(distance('kitten', 'sitting')).toBe(3)
  expect(distance('ab', 'ba')).toBe(1)
  expect(nearest('--seeed', ['--seed', '--json'])).toBe('--seed')
  expect(nearest('--zzzzzzzz', ['--seed', '--json'])).toBeNull()
})

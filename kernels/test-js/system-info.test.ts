import { describe, expect, it } from 'vitest'
import { cpuThreads, memoryStats, setCpuThreads, systemInfo } from '../lib/index.js'

describe('systemInfo', () => {
  const info = systemInfo()

  it('says what the machine has and where the addon was found', () => {
    expect(info).toMatchObject({ node: process.version, platform: process.platform, arch: process.arch })
    expect('path' in info.addon && info.addon.path).toMatch(/nexus\.node$/)
    expect(info.machine?.cpu.cores).toBeGreaterThan(0)
    expect(info.machine?.cpu.isas).toContain(info.machine?.cpu.isa)
    expect(info.machine?.memoryBytes).toBeGreaterThan(2 ** 20)
  })

  it('is plain data', () => {
    expect(JSON.parse(JSON.stringify(info))).toEqual(info)
  })

  it('gives a reason where CUDA cannot be used', () => {
    const cuda = info.machine?.cuda
    if (cuda?.usable) expect(cuda.devices.length).toBeGreaterThan(0)
    else expect(cuda?.status).toMatch(/\w+ \w+/)
  })
})

describe('memoryStats', () => {
  it('measures the machine for the CPU', () => {
    const stats = memoryStats('cpu')
    expect(stats.totalBytes).toBeGreaterThan(2 ** 20)
    expect(stats.peakBytes).toBeGreaterThanOrEqual(stats.liveBytes)
  })
})

describe('CPU threads', () => {
  it('can be set, within 1 and 1024', () => {
    const before = cpuThreads()
    try {
      setCpuThreads(3)
      expect(cpuThreads()).toBe(3)
      for (const bad of [0, -1, 1.5, 1025]) expect(() => setCpuThreads(bad)).toThrow(RangeError)
      expect(() => setCpuThreads('2' as never)).toThrow(TypeError)
    } finally {
      setCpuThreads(before)
    }
  })
})

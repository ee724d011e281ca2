import { defineProject } from 'vitest/config'

export default defineProject({ test: { name: 'router-kernels', include: ['test/**/*.test.ts'], environment: 'node' } })

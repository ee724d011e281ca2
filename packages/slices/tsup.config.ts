import { defineConfig } from 'tsup'

export default defineConfig({
  entry: ['src/index.ts', 'src/simulator.ts'],
  format: ['esm', 'cjs'],
  // tsup 8 sets baseUrl for its d.ts pass, which TypeScript 6 reports as deprecated
  dts: { compilerOptions: { ignoreDeprecations: '6.0' } },
  sourcemap: true,
  clean: true,
  target: 'node20',
})

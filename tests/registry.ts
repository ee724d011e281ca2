// A read-only package registry on loopback, for tests: it serves the tarballs of one folder and redirects every other
// name to the registry that npm is set to.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'

export interface Registry {
  /** Address to set as npm's registry. */
  readonly url: string
  close(): void
}

/** The registry that npm is set to on this machine. */
export function npmRegistry(): string {
  return execFileSync('npm', ['config', 'get', 'registry', '--loglevel=error'], { encoding: 'utf8' }).trim()
}

function manifestOf(tarball: string): { name: string; version: string } {
  return JSON.parse(execFileSync('tar', ['-xzOf', tarball, 'package/package.json'], { encoding: 'utf8' }))
}

/** Serves the `*.tgz` of `folder`. */
export async function serveRegistry(folder: string, upstream: string): Promise<Registry> {
  const files = new Map<string, Buffer>()
  const packages = new Map<string, unknown>()
  const server = createServer((request, response) => {
    const address = request.url ?? '/'
    const path = decodeURIComponent(new URL(address, 'http://loopback').pathname).slice(1)
    const file = files.get(path)
    const document = packages.get(path)
    if (file) response.end(file)
    else if (document) response.setHeader('content-type', 'application/json').end(JSON.stringify(document))
    // A stranger's package must never stand in for one of ours that was not packed.
    else if (/^(@nexus\/|nexus-demo)/.test(path)) response.writeHead(404).end()
    else response.writeHead(307, { location: new URL(address.slice(1), upstream).href }).end()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  for (const name of readdirSync(folder).filter((file) => file.endsWith('.tgz'))) {
    const bytes = readFileSync(join(folder, name))
    const manifest = manifestOf(join(folder, name))
    const integrity = `sha512-${createHash('sha512').update(bytes).digest('base64')}`
    files.set(`-/${name}`, bytes)
    packages.set(manifest.name, {
      name: manifest.name,
      'dist-tags': { latest: manifest.version },
      versions: { [manifest.version]: { ...manifest, dist: { tarball: `${url}-/${name}`, integrity } } },
      time: { [manifest.version]: '2020-01-01T00:00:00.000Z' },
    })
  }
  return {
    url,
    close: () => {
      server.closeAllConnections()
      server.close()
    },
  }
}

// What both renderers share: repeatable random numbers, pictures out of SVG, sets out of pictures.
import { Resvg } from '@resvg/resvg-js'
import fs from 'fs'

export const SIZE = 64

// mulberry32 seeded by a hashed string, so that streams of different names are independent
export function random(name) {
  let h = 2166136261
  for (const c of name) h = Math.imul(h ^ c.charCodeAt(0), 16777619)
  return () => { h = (h + 0x6d2b79f5) | 0; let t = Math.imul(h ^ (h >>> 15), 1 | h); t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t; return ((t ^ (t >>> 14)) >>> 0) / 4294967296 }
}
export const pick = (r, a) => a[Math.floor(r() * a.length)]

export function pixels(svg) {
  const image = new Resvg(svg, { fitTo: { mode: 'width', value: SIZE }, font: { loadSystemFonts: false } }).render(), p = Buffer.from(image.pixels)
  if (image.width !== SIZE || image.height !== SIZE) throw new Error(`size ${image.width}x${image.height}`)
  for (let i = 0; i < p.length; i += 4) { const a = p[i + 3]; if (a && a < 255) for (let c = 0; c < 3; c++) p[i + c] = Math.min(255, Math.round(p[i + c] * 255 / a)) }
  return p
}
export function iconPixels(set, name) {
  const i = set.icons[name], w = i.width || set.width, h = i.height || set.height
  return w === h ? pixels(`<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 ${w} ${h}" width="${w}" height="${h}">${i.body}</svg>`) : null
}
export function write(folder, name, rows) { fs.writeFileSync(`${folder}/${name}.raw`, Buffer.concat(rows.map(r => r[0]))); fs.writeFileSync(`${folder}/${name}.json`, JSON.stringify(rows.map(r => r[1]))); console.log(name, rows.length) }

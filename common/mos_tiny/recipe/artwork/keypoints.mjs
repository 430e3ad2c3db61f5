// Finds where faces have their eyes, mouth and head: node keypoints.mjs OUT, which writes OUT/keypoints.json
// Each face is drawn twice with one part changed; the part is where the two pictures differ. A style places its parts alike on everybody, so one answer holds for the style.
import { createAvatar } from '@dicebear/core'
import * as collection from '@dicebear/collection'
import fs from 'fs'
import { SIZE, pixels } from './pixels.mjs'

const OUT = process.argv[2], CHANGED = 24  // of 255 in one channel
// The frames are those of render.mjs; the hair hides nothing of the head.
const STYLES = {
  toonHead: { frame: { scale: 122, translateY: 8 }, plain: { hair: ['undercut'], rearHairProbability: 0, beardProbability: 0, eyebrows: ['neutral'], eyes: ['happy'], mouth: ['smile'], skinColor: ['f1c3a5'] }, eyes: ['wide', 'happy'], mouth: ['laugh', 'agape', 'sad'], skin: 'skinColor' },
  micah: { frame: { scale: 108, translateY: 2 }, plain: { hair: ['mrT'], glassesProbability: 0, facialHairProbability: 0, earringsProbability: 0, eyebrows: ['up'], nose: ['curve'], ears: ['attached'], eyes: ['eyes'], mouth: ['smile'], baseColor: ['f9c9b6'] }, eyes: ['round', 'smiling'], mouth: ['laughing', 'sad', 'surprised'], skin: 'baseColor' },
  personas: { frame: { scale: 120, translateY: 6 }, plain: { hair: ['bald'], facialHairProbability: 0, nose: ['mediumRound'], eyes: ['open'], mouth: ['smile'], skinColor: ['eeb4a4'] }, eyes: ['happy', 'wink'], mouth: ['frown', 'surprise', 'bigSmile'], skin: 'skinColor' },
}
const mean = a => a.reduce((x, y) => x + y, 0) / a.length
const round = n => Math.round(n * 10) / 10

function changed(a, b) {
  const points = []
  for (let i = 0; i < a.length; i += 4) if ([0, 1, 2].some(c => Math.abs(a[i + c] - b[i + c]) > CHANGED) && a[i + 3] + b[i + 3]) points.push([(i / 4) % SIZE, Math.floor(i / 4 / SIZE)])
  return points
}
const centre = points => [round(mean([Math.min(...points.map(p => p[0])), Math.max(...points.map(p => p[0]))]) + 0.5), round(mean([Math.min(...points.map(p => p[1])), Math.max(...points.map(p => p[1]))]) + 0.5)]

const found = {}
for (const [style, s] of Object.entries(STYLES)) {
  const draw = options => pixels(createAvatar(collection[style], { seed: 'x', ...s.frame, ...s.plain, ...options, size: SIZE }).toString()), plain = draw({})
  const eyes = s.eyes.flatMap(e => changed(plain, draw({ eyes: [e] }))), columns = [...new Set(eyes.map(p => p[0]))].sort((a, b) => a - b)
  const cut = columns.slice(1).map((c, i) => [c - columns[i], c]).sort((a, b) => b[0] - a[0])[0][1]  // the nose is in the widest gap
  const mouth = s.mouth.flatMap(m => changed(plain, draw({ mouth: [m] })))
  const skin = changed(plain, draw({ [s.skin]: ['3030ff'] })), width = y => { const x = skin.filter(p => p[1] === y).map(p => p[0]); return x.length ? Math.max(...x) - Math.min(...x) + 1 : 0 }
  const rows = [...new Set(skin.map(p => p[1]))].sort((a, b) => a - b), widest = Math.max(...rows.map(width)), below = Math.max(...mouth.map(p => p[1]))
  const chin = rows.find(y => y > below && width(y) < widest / 2) ?? rows.at(-1)  // the neck is narrower than half the head
  const head = skin.filter(p => p[1] < chin)
  found[style] = { left_eye: centre(eyes.filter(p => p[0] < cut)), right_eye: centre(eyes.filter(p => p[0] >= cut)), mouth: centre(mouth), head: [Math.min(...head.map(p => p[0])), Math.min(...head.map(p => p[1])), Math.max(...head.map(p => p[0])) + 1, chin] }
}
fs.writeFileSync(`${OUT}/keypoints.json`, JSON.stringify(found, null, 1) + '\n')

// Renders people who look alike: node alike.mjs OUT
// alike.raw/json: people of the base's own styles with looks that training never drew, in groups of four whose pictures differ in the fewest pixels, who wear the same. 64 x 64 straight-alpha RGBA.
import { STYLES, choose, draw, keptPeople, look, trainedPeople } from './people.mjs'
import { random, write } from './pixels.mjs'

const [OUT] = process.argv.slice(2), VIEWS = 12, GROUPS = { micah: 14, personas: 2 }, LETTERS = 'abcdefghijklmnopqrstuvwxyz'
const known = o => Object.fromEntries(Object.entries(o).filter(([, v]) => v !== null))
const CLOTHES = /cloth|shirt|body/i, clothesOf = s => Object.fromEntries(Object.entries(s.identity).filter(([k]) => CLOTHES.test(k)))

// Every look that a style's options give, and that neither training drew nor a kept person has
function unseenLooks(style, s, keptLooks) {
  const drawn = new Set([...trainedPeople(style, keptLooks)].map(([who]) => look(who)))
  let looks = [{}]
  for (const [k, values] of Object.entries(s.identity)) if (!CLOTHES.test(k)) looks = looks.flatMap(o => [...new Set(values)].map(v => ({ ...o, [k]: v })))
  return looks.filter(o => s.allowed(o) && !drawn.has(look(o)) && !keptLooks.has(style + look(o)))
}

// Pixels that differ. Glasses of another shape hardly show at this size: who differs in nothing else is not told apart, and never in one group
const onlyGlasses = (a, b) => a.glasses && b.glasses && Object.keys(a).every(k => k === 'glasses' || a[k] === b[k])
function difference(one, other, a, b) {
  if (onlyGlasses(one, other)) return Infinity
  let count = 0
  for (let i = 0; i < a.length; i += 4) if (a.readUInt32LE(i) !== b.readUInt32LE(i)) count++
  return count
}

// The four of least difference, summed over pairs, in the same clothes with the same expression. The first of equals
function mostAlike(style, s, people) {
  const same = { ...choose(random('clothes'), clothesOf(s)), ...choose(random('view'), s.view), ...s.fixed }
  const drawn = people.map(o => draw(style, 'x', { ...o, ...same }, s.frame)), n = people.length
  const differ = people.map((one, i) => people.map((other, j) => difference(one, other, drawn[i], drawn[j])))
  let least = Infinity, best
  for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) for (let k = j + 1; k < n; k++) {
    const three = differ[i][j] + differ[i][k] + differ[j][k]
    if (three < least) for (let l = k + 1; l < n; l++) {
      const four = three + differ[i][l] + differ[j][l] + differ[k][l]
      if (four < least) { least = four; best = [i, j, k, l] }
    }
  }
  return best
}

const alike = [], [, keptLooks] = keptPeople()
for (const [style, count] of Object.entries(GROUPS)) {
  const s = STYLES[style]
  let left = unseenLooks(style, s, keptLooks)
  console.log(style, 'unseen looks', left.length)
  for (const group of LETTERS.slice(0, count)) {
    const chosen = mostAlike(style, s, left), r = random(`alike/${style}/${group}`), clothes = choose(r, clothesOf(s))
    for (const [member, i] of chosen.entries()) for (let view = 0; view < VIEWS; view++) {
      const who = { ...left[i], ...clothes }
      alike.push([draw(style, 'x', { ...who, ...choose(r, s.view), ...s.fixed }, s.frame), { style, id: `${group}${member + 1}`, unseenStyle: false, ...known(s.caption(who)) }])
    }
    left = left.filter((_, i) => !chosen.includes(i))
  }
}
write(OUT, 'alike', alike)

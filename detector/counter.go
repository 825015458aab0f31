package detector

import "net/netip"

// A counter counts probes per source. It holds at most the given number of
// sources: when it is full, a newcomer takes the place of a source seen only
// once, so that a flood of forged sources never displaces one that keeps
// coming back. If a look at a few entries finds none, the newcomer is not
// counted.
type counter struct {
	counts    map[netip.Addr]int
	forgotten uint64
}

// evictionLooks bounds the work for a newcomer when the counter is full.
const evictionLooks = 8

// add counts one probe of source and returns how many it has sent.
func (c *counter) add(source netip.Addr, limit int) int {
	n, known := c.counts[source]
	if !known && len(c.counts) >= limit && !c.evict() {
		c.forgotten++
		return 1
	}
	if c.counts == nil {
		c.counts = make(map[netip.Addr]int)
	}
	c.counts[source] = n + 1
	return n + 1
}

// evict forgets a source seen only once; Go visits a map in random order, so
// nobody can choose which.
func (c *counter) evict() bool {
	looked := 0
	for source, n := range c.counts {
		if n == 1 {
			delete(c.counts, source)
			c.forgotten++
			return true
		}
		if looked++; looked == evictionLooks {
			break
		}
	}
	return false
}

package detector

import (
	"net/netip"
	"time"
)

// A counter counts probes per source. It holds at most the given number of
// sources. When it is full, a newcomer takes the place of the weakest of a few:
// the one with the fewest probes and, among equals, the longest unseen. So a
// flood of forged sources does not displace one that keeps coming back, and
// nothing that strangers send fills the counter for good.
type counter struct {
	counts    map[netip.Addr]tally
	forgotten uint64
}

// A tally is what is known of one source.
type tally struct {
	probes int
	last   time.Time // arrival of the latest
}

func (t tally) weakerThan(other tally) bool {
	if t.probes != other.probes {
		return t.probes < other.probes
	}
	return t.last.Before(other.last)
}

// evictionLooks bounds the work for a newcomer when the counter is full.
const evictionLooks = 8

// add counts one probe of source and returns how many it has sent.
func (c *counter) add(source netip.Addr, at time.Time, limit int) int {
	t, known := c.counts[source]
	if !known {
		for len(c.counts) >= limit { // more than once after the limit was lowered
			c.evict()
		}
	}
	if c.counts == nil {
		c.counts = make(map[netip.Addr]tally)
	}
	t.probes++
	t.last = at
	c.counts[source] = t
	return t.probes
}

// evict forgets the weakest of a few sources. Go visits a map in random order,
// so nobody can choose which.
func (c *counter) evict() {
	var weakest netip.Addr
	looked := 0
	for source, t := range c.counts {
		if looked == 0 || t.weakerThan(c.counts[weakest]) {
			weakest = source
		}
		if looked++; looked == evictionLooks {
			break
		}
	}
	delete(c.counts, weakest)
	c.forgotten++
}

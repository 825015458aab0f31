package capture

import (
	"maps"

	"golang.org/x/sys/unix"
)

// Stats are a packet socket's counters since it was opened, up to the end of
// [Sniff]. Every packet that passed the kernel's filter was lost, became a
// probe, or is counted under the reason why not; until the end, the latest may
// not be counted yet.
type Stats struct {
	Packets uint64 // passed the kernel's filter
	Lost    uint64 // of these, found the ring full or were in it at the end: never seen
	Probes  uint64 // handed to the observer

	NotProbes uint64 // segments with ACK or RST, or to many, that the filter could not tell
	Unwatched uint64 // from an interface that the filter could not tell
	NotLocal  uint64 // for an address that this host does not have
	Requests  uint64 // datagrams that left this host from a trap port
	Answers   uint64 // datagrams that answer those

	Undecoded map[string]uint64 // packets by why they are neither segment nor datagram

	BrokenBlocks uint64 // blocks of the ring that made no sense: a fault of the kernel
}

// packetCounts are the counters that the reader keeps, of one block.
type packetCounts struct {
	probes, notProbes, unwatched, notLocal uint64
	requests, answers                      uint64
	undecoded                              [dropReasons]uint64
	brokenBlocks                           uint64
}

// count adds what became of a block's packets.
func (s *PacketSocket) count(c *packetCounts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Probes += c.probes
	s.stats.NotProbes += c.notProbes
	s.stats.Unwatched += c.unwatched
	s.stats.NotLocal += c.notLocal
	s.stats.Requests += c.requests
	s.stats.Answers += c.answers
	s.stats.BrokenBlocks += c.brokenBlocks
	for reason, n := range c.undecoded {
		if n == 0 {
			continue
		}
		if s.stats.Undecoded == nil {
			s.stats.Undecoded = make(map[string]uint64)
		}
		s.stats.Undecoded[dropReason(reason).String()] += n
	}
}

// Stats returns the counters.
func (s *PacketSocket) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.collectLocked()
	stats := s.stats
	stats.Undecoded = maps.Clone(stats.Undecoded)
	return stats
}

// collectLocked adds the kernel's counters, which start anew with each reading.
func (s *PacketSocket) collectLocked() {
	if s.settled {
		return
	}
	// What could fail here is only an argument of ours.
	_ = s.control(func(fd int) error {
		counters, err := unix.GetsockoptTpacketStatsV3(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			return err
		}
		s.stats.Packets += uint64(counters.Packets)
		s.stats.Lost += uint64(counters.Drops)
		return nil
	})
}

// settle makes the counters final: what the reader, which has ended, did not
// see is lost.
func (s *PacketSocket) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.collectLocked()
	s.settled = true
	s.stats.Lost = s.stats.Packets - s.stats.seen()
}

// seen returns how many packets the reader has dealt with.
func (s *Stats) seen() uint64 {
	n := s.Probes + s.NotProbes + s.Unwatched + s.NotLocal + s.Requests + s.Answers
	for _, undecoded := range s.Undecoded {
		n += undecoded
	}
	return n
}

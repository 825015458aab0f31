package guard

import (
	"fmt"
	"net/netip"
	"time"
)

const (
	// loginGrace is when a session counts as an administrator's. By then an SSH
	// server has closed every connection on which nobody has logged in: that is
	// OpenSSH's LoginGraceTime, 120 s, and some. Without it a scan that touches
	// the SSH port would put its source out of reach.
	loginGrace = 150 * time.Second

	// sessionMemoryTime is how long the peer of such a session is spared after
	// it has ended, so that whoever lost the connection gets back in.
	sessionMemoryTime = 10 * time.Minute

	// maxSessions and maxRecent bound what is remembered. Newcomers are left
	// out when there is no room for their sessions, so that a flood of
	// connections drives no administrator out; of the ended sessions, those
	// that ended first are forgotten.
	maxSessions = 4096
	maxRecent   = 4096
)

// A session is an established connection to an SSH server.
type session struct {
	peer  netip.Addr
	since time.Time // first seen
}

// sessions are by the cookies of their sockets.
type sessions map[uint64]session

// A sessionMemory remembers the peers of SSH sessions.
type sessionMemory struct {
	live   sessions
	recent map[netip.Addr]time.Time // peers of settled sessions: spared until then
}

func newSessionMemory() sessionMemory {
	return sessionMemory{live: sessions{}, recent: make(map[netip.Addr]time.Time)}
}

// A sessionReading gathers the sessions that are there now.
type sessionReading struct {
	before, now sessions
	room        int // for new sessions
	refused     int
}

func (m *sessionMemory) begin() *sessionReading {
	return &sessionReading{before: m.live, now: sessions{}, room: maxSessions - len(m.live)}
}

func (r *sessionReading) add(s tcpSocket, now time.Time) {
	known, ok := r.before[s.cookie]
	switch {
	case ok:
		r.now[s.cookie] = known
	case r.room > 0:
		r.room--
		r.now[s.cookie] = session{s.peer, now}
	default:
		r.refused++
	}
}

// end makes a complete reading the present and returns the peers to spare. The
// error says that there are more.
func (m *sessionMemory) end(r *sessionReading, now time.Time) ([]Entry, error) {
	m.live = r.now
	for peer, until := range m.recent {
		if !now.Before(until) {
			delete(m.recent, peer)
		}
	}
	for _, s := range m.live {
		if now.Sub(s.since) >= loginGrace {
			m.remember(s.peer, now.Add(sessionMemoryTime))
		}
	}
	if r.refused > 0 {
		return m.entries(), fmt.Errorf("%d sessions more than the %d that are kept track of", r.refused, maxSessions)
	}
	return m.entries(), nil
}

func (m *sessionMemory) remember(peer netip.Addr, until time.Time) {
	if _, known := m.recent[peer]; !known && len(m.recent) >= maxRecent {
		m.forgetFirst()
	}
	m.recent[peer] = until
}

// forgetFirst forgets the peer whose session ended first.
func (m *sessionMemory) forgetFirst() {
	var first netip.Addr
	for peer, until := range m.recent {
		if !first.IsValid() || until.Before(m.recent[first]) {
			first = peer
		}
	}
	delete(m.recent, first)
}

// entries returns the peers to spare.
func (m *sessionMemory) entries() []Entry {
	entries := make([]Entry, 0, len(m.live)+len(m.recent))
	for _, s := range m.live {
		entries = append(entries, Entry{hostPrefix(s.peer), whySession})
	}
	for peer := range m.recent {
		entries = append(entries, Entry{hostPrefix(peer), whyRecentSession})
	}
	return entries
}

package guard

import (
	"net/netip"
	"testing"
	"time"
)

// see has m see the sockets of peers by cookie.
func (m *sessionMemory) see(now time.Time, sockets map[uint64]netip.Addr) ([]Entry, error) {
	r := m.begin()
	for cookie, peer := range sockets {
		r.add(tcpSocket{cookie: cookie, peer: peer}, now)
	}
	return m.end(r, now)
}

func numbered(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
}

func TestSessionMemory(t *testing.T) {
	admin := numbered(1)
	one := map[uint64]netip.Addr{7: admin}
	tests := map[string]struct {
		lasts []map[uint64]netip.Addr // one each loginGrace/2
		after time.Duration           // the end
		want  string
	}{
		"never there":                {nil, 0, ""},
		"there":                      {[]map[uint64]netip.Addr{one}, -1, whySession},
		"gone before the login":      {[]map[uint64]netip.Addr{one, one}, 0, ""},
		"gone after the login":       {[]map[uint64]netip.Addr{one, one, one}, 0, whyRecentSession},
		"almost forgotten":           {[]map[uint64]netip.Addr{one, one, one}, sessionMemoryTime - loginGrace/2 - 1, whyRecentSession},
		"forgotten":                  {[]map[uint64]netip.Addr{one, one, one}, sessionMemoryTime, ""},
		"one connection after other": {[]map[uint64]netip.Addr{one, {8: admin}, {9: admin}, {10: admin}}, 0, ""},
		"two, the older stayed":      {[]map[uint64]netip.Addr{one, {7: admin, 8: admin}, {7: admin, 9: admin}}, 0, whyRecentSession},
		"back again":                 {[]map[uint64]netip.Addr{one, one, one, {}, {8: admin}}, -1, whySession},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := newSessionMemory()
			now := time.Unix(1_000_000_000, 0)
			entries := m.entries()
			var err error
			for _, sockets := range tt.lasts {
				if entries, err = m.see(now, sockets); err != nil {
					t.Fatal(err)
				}
				now = now.Add(loginGrace / 2)
			}
			if tt.after >= 0 {
				if entries, err = m.see(now.Add(tt.after), nil); err != nil {
					t.Fatal(err)
				}
			}
			e, _ := newSet(entries).overlapping(hostPrefix(admin))
			if e.Why != tt.want {
				t.Errorf("the peer is spared as %q, want %q", e.Why, tt.want)
			}
		})
	}
}

// TestSessionFloodDrivesNobodyOut has more peers come than are kept track of.
func TestSessionFloodDrivesNobodyOut(t *testing.T) {
	m := newSessionMemory()
	now := time.Unix(1_000_000_000, 0)
	if _, err := m.see(now, map[uint64]netip.Addr{0: numbered(0)}); err != nil {
		t.Fatal(err)
	}
	flood := make(map[uint64]netip.Addr)
	for i := range 3 * maxSessions {
		flood[uint64(i)] = numbered(i)
	}
	entries, err := m.see(now.Add(time.Second), flood)
	if err == nil {
		t.Error("no error tells that there are too many")
	}
	if len(m.live) != maxSessions {
		t.Errorf("%d sessions are kept track of, want %d", len(m.live), maxSessions)
	}
	if _, ok := newSet(entries).overlapping(hostPrefix(numbered(0))); !ok {
		t.Error("who was there before is no longer spared")
	}
}

// TestRecentPeersAreBounded has a full house log out, and then a few more.
func TestRecentPeersAreBounded(t *testing.T) {
	m := newSessionMemory()
	now := time.Unix(1_000_000_000, 0)
	const more = 10
	for round, n := range []int{maxRecent, more} {
		peers := make(map[uint64]netip.Addr)
		for i := round * maxRecent; i < round*maxRecent+n; i++ {
			peers[uint64(i)] = numbered(i)
		}
		for _, after := range []time.Duration{0, loginGrace} {
			if _, err := m.see(now.Add(after), peers); err != nil {
				t.Fatal(err)
			}
		}
		now = now.Add(loginGrace + time.Second)
		if _, err := m.see(now, nil); err != nil {
			t.Fatal(err)
		}
		if len(m.recent) != maxRecent {
			t.Errorf("round %d: %d peers are remembered, want %d", round, len(m.recent), maxRecent)
		}
	}
	for i := maxRecent; i < maxRecent+more; i++ {
		if _, ok := m.recent[numbered(i)]; !ok {
			t.Errorf("peer %d, one of the last, is forgotten before those of the first round", i)
		}
	}
}

package firewall

import (
	"testing"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

// The figures of docs/firewall.md:
//
//	go test -bench . -run NONE ./outputs/firewall

const many = 100_000

// benchmarked are the variants that differ in speed.
var benchmarked = []string{"nftables", "ipset"}

// BenchmarkRestore states all bans to an empty firewall, as after a start.
func BenchmarkRestore(b *testing.B) {
	until := time.Now().Add(time.Hour)
	kinds := map[string][]detector.Ban{"hosts": hosts(many, until), "networks": networks(many, until)}
	for _, name := range benchmarked {
		for kind, bans := range kinds {
			b.Run(name+"/"+kind, func(b *testing.B) {
				for b.Loop() {
					m := configured(b, variants[name].settings)
					set(b, m, bans)
					b.StopTimer()
					flush(b, m)
					b.StartTimer()
				}
			})
		}
	}
}

// BenchmarkAdd adds all bans in the batches of the dispatcher.
func BenchmarkAdd(b *testing.B) {
	const batch = 256
	bans := hosts(many, time.Now().Add(time.Hour))
	for _, name := range benchmarked {
		b.Run(name, func(b *testing.B) {
			m := configured(b, variants[name].settings)
			for b.Loop() {
				b.StopTimer()
				set(b, m, nil)
				b.StartTimer()
				for i := 0; i < len(bans); i += batch {
					change(b, m, bans[i:min(i+batch, len(bans))], nil)
				}
			}
		})
	}
}

// BenchmarkChange bans one source more, and lifts that again, while many are
// banned.
func BenchmarkChange(b *testing.B) {
	until := time.Now().Add(time.Hour)
	one := map[string][]detector.Ban{
		"host":    bansUntil(until, "192.0.2.1/32"),
		"network": bansUntil(until, "2001:db8:ffff:ffff::/64"),
		"prefix":  bansUntil(until, "192.0.2.0/24"),
	}
	bans := append(hosts(many/2, until), networks(many/2, until)...)
	for _, name := range benchmarked {
		for kind, ban := range one {
			b.Run(name+"/"+kind, func(b *testing.B) {
				m := configured(b, variants[name].settings)
				set(b, m, bans)
				for b.Loop() {
					change(b, m, ban, nil)
					change(b, m, nil, ban)
				}
			})
		}
	}
}

// BenchmarkCompare reads everything back.
func BenchmarkCompare(b *testing.B) {
	bans := hosts(many, time.Now().Add(time.Hour))
	for _, name := range benchmarked {
		b.Run(name, func(b *testing.B) {
			m := configured(b, variants[name].settings)
			set(b, m, bans)
			for b.Loop() {
				if holds, err := m.backend.holds(b.Context(), m.bans.until); err != nil || !holds {
					b.Fatalf("holds: %v, %v", holds, err)
				}
			}
		})
	}
}

// BenchmarkHeal takes something away from many bans and waits until it is back.
func BenchmarkHeal(b *testing.B) {
	bans := hosts(many, time.Now().Add(time.Hour))
	lines := map[string]string{
		"ruleset": "nft flush ruleset",
		"element": "nft delete element inet portsnare banned4 { 198.18.0.0 }",
	}
	for name, line := range lines {
		b.Run(name, func(b *testing.B) {
			m := configured(b, variants["nftables"].settings)
			whole := &wholes{backend: m.backend}
			m.backend = whole
			set(b, m, bans)
			for b.Loop() {
				before := whole.count.Load()
				sh(b, line)
				nettest.WaitFor(b, "the bans are back", func() bool { return whole.count.Load() > before })
			}
		})
	}
}

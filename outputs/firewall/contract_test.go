package firewall

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A variant is one way to use the module, for tests of what all have in common.
type variant struct {
	settings string
	before   string // what the administrator did before
	after    string
	legacy   bool // iptables is iptables-legacy
	read     func(testing.TB) kernel
}

const (
	// ownSets and ownIPSets are what docs/firewall.md tells administrators to
	// write.
	ownSets = `nft -f - <<-'END'
		table inet filter {
			set banned4 { type ipv4_addr; flags timeout; }
			set banned4_nets { type ipv4_addr; flags interval, timeout; }
			set banned6 { type ipv6_addr; flags timeout; }
			set banned6_64 { type ipv6_addr; flags timeout; }
			set banned6_nets { type ipv6_addr; flags interval, timeout; }

			chain prerouting {
				type filter hook prerouting priority raw; policy accept;
				ip saddr @banned4 drop
				ip saddr @banned4_nets drop
				ip6 saddr @banned6 drop
				ip6 saddr & ffff:ffff:ffff:ffff:: @banned6_64 drop
				ip6 saddr @banned6_nets drop
			}
		}
	END`
	ownIPSets = `
		ipset create portsnare4 hash:net family inet timeout 0
		ipset create portsnare6 hash:net family inet6 timeout 0
		iptables -t raw -I PREROUTING -m set --match-set portsnare4 src -j DROP
		ip6tables -t raw -I PREROUTING -m set --match-set portsnare6 src -j DROP`
)

func nftTableReader(table string) func(testing.TB) kernel {
	return func(t testing.TB) kernel { return readNFT(t, table) }
}

var variants = map[string]variant{
	"nftables":               {settings: `{"backend": "nftables"}`, read: nftTableReader("inet portsnare")},
	"nftables by itself":     {settings: `{}`, read: nftTableReader("inet portsnare")},
	"nftables at input":      {settings: `{"backend": "nftables", "hook": "input", "table": "guard"}`, read: nftTableReader("inet guard")},
	"nftables, sets only":    {settings: `{"backend": "nftables", "sets_only": true, "table": "inet filter"}`, before: ownSets, after: "nft delete table inet filter", read: nftTableReader("inet filter")},
	"ipset":                  {settings: `{"backend": "ipset"}`, read: readIPSet},
	"ipset at input":         {settings: `{"backend": "ipset", "hook": "input"}`, read: readIPSet},
	"ipset, sets only":       {settings: `{"backend": "ipset", "sets_only": true}`, before: ownIPSets, after: "iptables -t raw -F; ip6tables -t raw -F", read: readIPSet},
	"ipset, legacy iptables": {settings: `{"backend": "ipset"}`, legacy: true, read: readIPSet},
}

func (v variant) start(t *testing.T) *Module {
	t.Helper()
	if v.legacy {
		useLegacy(t)
	}
	if v.before != "" {
		sh(t, v.before)
		t.Cleanup(func() { sh(t, v.after) }) // after the module is gone
	}
	return configured(t, v.settings)
}

// useLegacy has the module find iptables-legacy as iptables, as where an
// administrator has chosen that.
func useLegacy(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables", "iptables-restore", "ip6tables", "ip6tables-restore"} {
		if err := os.Symlink("/usr/sbin/xtables-legacy-multi", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	dirs := programDirs
	programDirs = append([]string{dir}, dirs...)
	t.Cleanup(func() { programDirs = dirs })
}

func TestBannedSourcesAreKeptOut(t *testing.T) {
	const (
		host, otherHost = "192.0.2.1", "192.0.2.9"
		ipv6, otherIPv6 = "2001:db8::1", "2001:db8:0:1::9"
	)
	tests := map[string]struct{ ban, out, in string }{
		"IPv4 host":             {"192.0.2.1/32", host, otherHost},
		"IPv4 host as IPv6":     {"::ffff:192.0.2.1/128", host, otherHost},
		"IPv4 prefix":           {"192.0.2.0/29", host, otherHost},
		"IPv6 host":             {"2001:db8::1/128", ipv6, otherIPv6},
		"IPv6 customary prefix": {"2001:db8:0:1:ffff::/64", otherIPv6, ipv6},
		"IPv6 other prefix":     {"2001:db8:0:1::/112", otherIPv6, ipv6},
	}
	outside := other(t)
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			m := v.start(t)
			set(t, m, nil)
			for name, test := range tests {
				t.Run(name, func(t *testing.T) {
					bans := bansUntil(time.Now().Add(time.Hour), test.ban)
					change(t, m, bans, nil)
					if reaches(t, outside, test.out) {
						t.Errorf("%s still connects after a ban of %s", test.out, test.ban)
					}
					if !reaches(t, outside, test.in) {
						t.Errorf("%s does not connect after a ban of %s", test.in, test.ban)
					}
					change(t, m, nil, bans)
					if !reaches(t, outside, test.out) {
						t.Errorf("%s does not connect after the end of a ban of %s", test.out, test.ban)
					}
				})
			}
		})
	}
}

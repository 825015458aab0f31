package firewall

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// manual is docs/firewall.md.
func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/firewall.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestManualCommands runs what the manual tells administrators to look with, and
// then to remove everything with.
func TestManualCommands(t *testing.T) {
	looks := regexp.MustCompile("`((?:nft list|nft get|nft -j|ipset list|ipset test|iptables -t raw -nvL)[^`|]*)`")
	removes := regexp.MustCompile("(?m)^(nft delete table .*)$|`(iptables -t raw -D [^`]*)`|`(ipset destroy [^`]*)`")
	for _, name := range []string{"nftables", "ipset"} {
		t.Run(name, func(t *testing.T) {
			m := variants[name].start(t)
			m.settings.Keep = true // it is removed by hand
			set(t, m, bansUntil(time.Now().Add(time.Hour), "192.0.2.7/32", "2001:db8:0:7::/64"))
			flush(t, m)
			ours := func(command string) bool { return strings.HasPrefix(command, "nft ") == (name == "nftables") }
			ran := 0
			for _, match := range looks.FindAllStringSubmatch(manual(t), -1) {
				if ours(match[1]) {
					sh(t, match[1])
					ran++
				}
			}
			for _, match := range removes.FindAllStringSubmatch(manual(t), -1) {
				command := match[1] + match[2] + match[3]
				if !ours(command) {
					continue
				}
				sh(t, command)
				ran++
				if name == "ipset" {
					sh(t, strings.NewReplacer("iptables", "ip6tables", "portsnare4", "portsnare6").Replace(command))
				}
			}
			if ran < 4 {
				t.Errorf("found only %d commands in the manual", ran)
			}
			if left := sh(t, "nft list tables 2>/dev/null | grep portsnare || true; ipset save"); left != "" {
				t.Errorf("what the manual says leaves:\n%s", left)
			}
		})
	}
}

// TestManualShowsWhatIsMade holds the manual's rulesets against those of the tests
// and of the module.
func TestManualShowsWhatIsMade(t *testing.T) {
	words := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	text := words(manual(t))
	lines := strings.Split(strings.TrimSpace(ownSets), "\n")
	if own := words(strings.Join(lines[1:len(lines)-1], "\n")); !strings.Contains(text, own) {
		t.Errorf("the manual lacks the ruleset that the tests use: %s", own)
	}
	configured(t, `{"backend": "nftables"}`)
	made := strings.NewReplacer("== ", "", "packets 0 bytes 0 ", "").Replace(run(t, "nft", "list", "table", "inet", "portsnare"))
	i := strings.Index(made, "chain ")
	if !strings.Contains(text, words(made[i:])) {
		t.Errorf("the manual lacks the chain that is made:\n%s", made[i:])
	}
	for _, kind := range setKinds {
		declared := declaration(newNFTTable(settings{Hook: prerouting, Priority: new(int32)}).sets[slices.Index(setKinds[:], kind)])
		if !strings.Contains(text, declared) {
			t.Errorf("the manual lacks %q", declared)
		}
	}
}

package firewall

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/portsnare/portsnare/outputs/outputapi"
)

// settings are those of the module's block.
type settings struct {
	// Backend is "nftables", "ipset", or "auto": nftables if the kernel has it.
	Backend string `json:"backend"`

	// Table is the nftables table, with its family in front if it is not inet.
	Table string `json:"table"`

	// SetsOnly says that the table, or for ipset the rules, are the
	// administrator's, and only the content of the sets is ours.
	SetsOnly bool `json:"sets_only"`

	// Hook is where packets are dropped: "prerouting", or "input", which is
	// input and forward.
	Hook string `json:"hook"`

	// Priority orders the chains of nftables among others of the same hook. The
	// default depends on the hook.
	Priority *int32 `json:"priority"`

	// Keep leaves the bans in the firewall, where they end by themselves, when
	// the module is ended.
	Keep bool `json:"keep"`

	table nftables.Table
}

// The values of settings.
const (
	auto         = "auto"
	useNFTables  = "nftables"
	useIPSet     = "ipset"
	prerouting   = "prerouting"
	input        = "input"
	forward      = "forward" // comes with input
	defaultTable = "portsnare"
)

// defaultPriority is before anything else that looks at packets: in prerouting
// before even fragments are put together (-400) and connections are tracked
// (-200), so that a banned source costs no memory; in input and forward before
// ordinary filters (0).
var defaultPriority = map[string]int32{prerouting: -450, input: -10}

// hooks returns where packets are dropped.
func hooks(hook string) []string {
	if hook == input {
		return []string{input, forward}
	}
	return []string{prerouting}
}

// families are the table families of nftables in nft's language.
var families = map[string]nftables.TableFamily{
	"inet": nftables.TableFamilyINet, "ip": nftables.TableFamilyIPv4, "ip6": nftables.TableFamilyIPv6,
	"netdev": nftables.TableFamilyNetdev, "bridge": nftables.TableFamilyBridge,
}

func familyName(family nftables.TableFamily) string {
	for name, f := range families {
		if f == family {
			return name
		}
	}
	return fmt.Sprintf("family %d", family)
}

// readSettings returns the settings with their defaults. The error is of type
// [outputapi.Faults].
func readSettings(c outputapi.Configuration) (settings, error) {
	s := settings{Backend: auto, Table: defaultTable, Hook: prerouting}
	if err := c.Decode(&s); err != nil {
		return settings{}, err
	}
	var faults outputapi.Faults
	fault := func(key, format string, args ...any) {
		faults = append(faults, outputapi.Fault{Key: key, Text: fmt.Sprintf(format, args...)})
	}

	if !slices.Contains([]string{auto, useNFTables, useIPSet}, s.Backend) {
		fault("backend", "%q is none of auto, nftables, ipset", s.Backend)
	}
	if _, ok := defaultPriority[s.Hook]; !ok {
		fault("hook", "%q is neither prerouting nor input", s.Hook)
	}
	if s.Priority != nil && s.Backend == useIPSet {
		fault("priority", "iptables knows no priorities; remove it, or set backend = \"nftables\"")
	}
	if s.Priority == nil {
		s.Priority = new(defaultPriority[s.Hook])
	}
	switch err := s.parseTable(); {
	case err != nil:
		fault("table", "%v", err)
	case s.Table != defaultTable && s.Backend == useIPSet:
		fault("table", "ipset knows no tables; remove it, or set backend = \"nftables\"")
	case s.SetsOnly && s.Backend != useIPSet && s.Table == defaultTable:
		fault("table", "sets_only takes the table that holds your sets, such as \"inet filter\"")
	case !s.SetsOnly && s.table.Family != nftables.TableFamilyINet:
		fault("table", "a table of ours is of the family inet; for sets in a table of yours set sets_only = true")
	}
	if len(faults) > 0 {
		return settings{}, faults
	}
	return s, nil
}

// tableName is what nft takes for a name, and short enough for the kernel.
var tableName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9/\\_.]{0,127}$`)

func (s *settings) parseTable() error {
	family, name, ok := strings.Cut(s.Table, " ")
	if !ok {
		family, name = "inet", s.Table
	}
	var known bool
	if s.table.Family, known = families[family]; !known {
		return fmt.Errorf("family %q is none of %s", family, strings.Join(slices.Sorted(maps.Keys(families)), ", "))
	}
	if !tableName.MatchString(name) {
		return fmt.Errorf("%q is no name of a table", name)
	}
	s.table.Name = name
	return nil
}

package outputapi

import (
	"errors"
	"slices"

	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// A Description is what a module says of itself.
type Description struct {
	Info
	Abilities []Ability
}

// The most bytes of the texts in a description, and the most elements of its
// lists.
const (
	maxName         = 64
	maxSummary      = 200
	maxCapabilities = 64
)

var (
	errNoName    = errors.New("the module's Info has no Name")
	errNoAbility = errors.New("the module is no Deliverer, BanKeeper or BanSource, so there is nothing to give it")
)

// Describe returns what m says of itself and is able to do, and an error if
// Portsnare would have no use for it.
func Describe(m Module) (Description, error) {
	d := Description{Info: m.Info(), Abilities: abilitiesOf(m)}
	switch {
	case d.Name == "":
		return d, errNoName
	case len(d.Abilities) == 0 || slices.Equal(d.Abilities, []Ability{Flushes}):
		return d, errNoAbility
	}
	return d, nil
}

func abilitiesOf(m Module) []Ability {
	var abilities []Ability
	if _, ok := m.(Deliverer); ok {
		abilities = append(abilities, Delivers)
	}
	if _, ok := m.(BanKeeper); ok {
		abilities = append(abilities, KeepsBans)
	}
	if _, ok := m.(Flusher); ok {
		abilities = append(abilities, Flushes)
	}
	if _, ok := m.(BanSource); ok {
		abilities = append(abilities, WatchesBans)
	}
	return abilities
}

var wireAbilities = map[Ability]outputv1.Ability{
	Delivers:    outputv1.Ability_ABILITY_DELIVER,
	KeepsBans:   outputv1.Ability_ABILITY_KEEP_BANS,
	Flushes:     outputv1.Ability_ABILITY_FLUSH,
	WatchesBans: outputv1.Ability_ABILITY_WATCH_BANS,
}

func fromDescription(d Description) *outputv1.DescribeResponse {
	m := &outputv1.DescribeResponse{
		Name:    outputv1.Text(d.Name, maxName),
		Version: outputv1.Text(d.Version, maxName),
		Summary: outputv1.Text(d.Summary, maxSummary),
	}
	for _, a := range d.Abilities {
		m.Abilities = append(m.Abilities, wireAbilities[a])
	}
	for _, c := range d.Capabilities[:min(len(d.Capabilities), maxCapabilities)] {
		m.Capabilities = append(m.Capabilities, outputv1.Text(c, maxName))
	}
	return m
}

// toDescription leaves out abilities that a later version added.
func toDescription(m *outputv1.DescribeResponse) (Description, error) {
	d := Description{Info: Info{
		Name:    outputv1.Text(m.GetName(), maxName),
		Version: outputv1.Text(m.GetVersion(), maxName),
		Summary: outputv1.Text(m.GetSummary(), maxSummary),
	}}
	if d.Name == "" {
		return Description{}, errors.New("the module does not say its name")
	}
	for _, a := range []Ability{Delivers, KeepsBans, Flushes, WatchesBans} {
		if slices.Contains(m.GetAbilities(), wireAbilities[a]) {
			d.Abilities = append(d.Abilities, a)
		}
	}
	for _, c := range m.GetCapabilities()[:min(len(m.GetCapabilities()), maxCapabilities)] {
		d.Capabilities = append(d.Capabilities, outputv1.Text(c, maxName))
	}
	return d, nil
}

package vectorboot

// Change tells an observer that cached views of a model are out of date.
type Change struct {
	Path  string
	Gone  bool    // the name went away or came into being, not only its content
	Moved bool    // the name in the live tree stands for another file now
	Data  []patch // ranges of the segment Ino that were changed in place
	Ino   uint64

	told func() // wakes who waits for the change
}

// Told says that observers have heard of the change: what they remembered is
// gone, and whoever waits for the change may look. Everybody who gets a Change
// tells, and then calls this.
func (c Change) Told() {
	if c.told != nil {
		c.told()
	}
}

// Observe registers the one function that hears of changes which the runtime
// makes by itself. It is called without locks, before the caller is answered.
// Changes made by a call that returns them are the caller's to tell.
func (rt *Runtime) Observe(f func(Change)) { rt.observe = f }

// tell passes changes to the observer. No lock is held.
func (rt *Runtime) tell(changes []Change) {
	for _, c := range changes {
		rt.observe(c)
	}
	for _, c := range changes {
		c.Told()
	}
}

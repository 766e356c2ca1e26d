"""Operations of a traced network, one a module: how it is read into a step, what the step does, needs and says."""
